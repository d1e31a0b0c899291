// A program's packed weights in a folder that the application gave.
#pragma once

#include "base/error.h"
#include "base/files.h"
#include "phi3mobile.h"

#include <cstdio>
#include <string>

#include <sys/stat.h>

namespace phi3mobile {

// Made beside, and put in place when the model has opened, for XNNPACK takes any file whose index is consistent, also one that
// a killed process left halfway.
class PackedFile {
 public:
  // folder: "" for none. InputError: it can't be made.
  PackedFile(const std::string& folder, const std::string& program_hash) {
    if (folder.empty()) return;
    ::mkdir(folder.c_str(), 0755);  // its parent must exist
    if (!is_folder(folder)) throw InputError("the folder " + folder + " can't be made: give one whose parent exists");
    path_ = folder + "/" + program_hash.substr(0, 32) + "-" + p3m_runtime_version() + "-" + p3m_isa() + ".packed";
    made_ = is_file(path_) ? path_ : path_ + ".partial";
    if (made_ != path_) std::remove(made_.c_str());
  }
  const char* opened() const { return path_.empty() ? nullptr : made_.c_str(); }
  void keep() const {
    if (!path_.empty() && made_ != path_) std::rename(made_.c_str(), path_.c_str());
  }

 private:
  std::string path_, made_;
};

}  // namespace phi3mobile
