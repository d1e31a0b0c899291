# Constrained output's engine, llguidance, as libllguidance beside our library (src/guide/llguidance.cpp looks there).
#   -DP3M_LLGUIDANCE=<libllguidance.so, .dylib>   installed beside, as for Android and macOS
#   -DP3M_LLGUIDANCE=<libllguidance.a>            linked in, as an iOS app needs it
#   -DP3M_LLGUIDANCE=OFF                          none: schemas, regexes and grammars are refused by name
# Not given: on Linux the one in Python's llguidance package where that is there, the very file that Python's session uses; else none.
# The package's library has the C functions beside Python's, and wants those of an interpreter, which nobody calls: stand-ins for
# them stand in a library before it.
if(NOT DEFINED P3M_LLGUIDANCE)
  set(failed TRUE)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND NOT CMAKE_CROSSCOMPILING)
    find_package(Python3 COMPONENTS Interpreter QUIET)
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" -c
              "import glob, importlib.util as u; print(glob.glob(list(u.find_spec('llguidance').submodule_search_locations)[0] + '/_lib*.so')[0], end='')"
      OUTPUT_VARIABLE extension
      RESULT_VARIABLE failed
      ERROR_QUIET)
  endif()
  if(failed)
    message(STATUS "no llguidance: this build has no constrained output (-DP3M_LLGUIDANCE gives it)")
    return()
  endif()
  execute_process(COMMAND "${CMAKE_NM}" -Du "${extension}" OUTPUT_VARIABLE wanted)
  string(REGEX MATCHALL "_*Py[A-Za-z0-9_]+" wanted "${wanted}")
  list(JOIN wanted "[64], " wanted)
  file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/without_python.cpp" "extern \"C\" {\nchar ${wanted}[64];\n}\n")
  get_filename_component(folder "${extension}" DIRECTORY)
  get_filename_component(name "${extension}" NAME)
  add_library(llguidance SHARED "${CMAKE_CURRENT_BINARY_DIR}/without_python.cpp")
  target_link_directories(llguidance PRIVATE "${folder}")
  target_link_options(llguidance PRIVATE -Wl,--no-as-needed)
  target_link_libraries(llguidance PRIVATE -l:${name})
  set(beside "${here}/../../llguidance")
  if(NOT P3M_BUNDLE_RUNTIME)
    list(APPEND beside "${folder}")
  endif()
  set_target_properties(llguidance PROPERTIES BUILD_RPATH "${folder}" INSTALL_RPATH "${beside}")
  install(TARGETS llguidance LIBRARY DESTINATION .)
elseif(P3M_LLGUIDANCE MATCHES "[.]a$")
  target_compile_definitions(phi3mobile PRIVATE P3M_LLGUIDANCE_STATIC)
  target_link_libraries(phi3mobile PRIVATE "${P3M_LLGUIDANCE}")
  target_link_libraries(p3m PRIVATE "${P3M_LLGUIDANCE}")
elseif(P3M_LLGUIDANCE)
  install(FILES "${P3M_LLGUIDANCE}" DESTINATION . RENAME libllguidance${CMAKE_SHARED_LIBRARY_SUFFIX})
endif()
