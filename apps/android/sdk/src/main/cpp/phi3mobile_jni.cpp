// The C API of phi3mobile/core for org.phi3mobile.Native. Texts are UTF-8 in byte arrays. A handle is a p3m_session*: Kotlin
// keeps that one thread uses it at a time, cancel apart.
#include "phi3mobile_session.h"

#include <fcntl.h>
#include <jni.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace {

JavaVM* vm = nullptr;
jclass native_class = nullptr;  // global
jmethodID failed_id, forward_id, reset_id, close_id;

constexpr size_t kError = 2000;

// An engine of the app's, while a session has it.
struct HostEngine {
  jobject engine;  // global
  int64_t vocab;
};

JNIEnv* environment() {
  JNIEnv* env = nullptr;
  vm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_6);
  return env;
}

jbyteArray bytes(JNIEnv* env, const char* text, size_t size) {
  jbyteArray made = env->NewByteArray(jsize(size));
  if (made) env->SetByteArrayRegion(made, 0, jsize(size), reinterpret_cast<const jbyte*>(text));
  return made;
}

std::string text(JNIEnv* env, jbyteArray given) {
  if (!given) return "";
  std::string made(size_t(env->GetArrayLength(given)), '\0');
  env->GetByteArrayRegion(given, 0, jsize(made.size()), reinterpret_cast<jbyte*>(made.data()));
  return made;
}

// Throws Phi3Exception with the line, unless Java has thrown already.
void fail(JNIEnv* env, const char* line) {
  if (env->ExceptionCheck()) return;
  jbyteArray said = bytes(env, line, std::strlen(line));
  if (!said) return;
  auto error = static_cast<jthrowable>(env->CallStaticObjectMethod(native_class, failed_id, said));
  if (!env->ExceptionCheck() && error) env->Throw(error);
}

int host_forward(void* user, const int64_t* tokens, int64_t count, int64_t position, int is_long, float* logits, char* error,
    size_t error_size) {
  JNIEnv* env = environment();
  auto tell = [&](const char* line) {
    if (error && error_size) {
      std::strncpy(error, line, error_size - 1);
      error[error_size - 1] = 0;
    }
    return 1;
  };
  if (!env) return tell("the engine was called on a thread that Java does not know");
  if (env->PushLocalFrame(8)) return tell("there is not enough memory: close programs or use a smaller model");
  struct Frame {
    JNIEnv* env;
    ~Frame() {
      if (env->ExceptionCheck()) env->ExceptionClear();
      env->PopLocalFrame(nullptr);
    }
  } frame{env};
  auto* engine = static_cast<HostEngine*>(user);
  jlongArray ids = env->NewLongArray(jsize(count));
  jobject out = env->NewDirectByteBuffer(logits, count * engine->vocab * jlong(sizeof(float)));
  if (!ids || !out) return tell("there is not enough memory: close programs or use a smaller model");
  static_assert(sizeof(jlong) == sizeof(int64_t));
  env->SetLongArrayRegion(ids, 0, jsize(count), reinterpret_cast<const jlong*>(tokens));
  auto said = static_cast<jbyteArray>(
      env->CallStaticObjectMethod(native_class, forward_id, engine->engine, ids, jlong(position), jboolean(is_long != 0), out));
  if (env->ExceptionCheck()) return tell("the application's engine failed");
  return said ? tell(text(env, said).c_str()) : 0;
}

void host_call(void* user, jmethodID method) {
  JNIEnv* env = environment();
  if (!env) return;
  env->CallStaticVoidMethod(native_class, method, static_cast<HostEngine*>(user)->engine);
  if (env->ExceptionCheck()) env->ExceptionClear();
}

void host_reset(void* user) { host_call(user, reset_id); }

void host_close(void* user) {
  host_call(user, close_id);
  std::unique_ptr<HostEngine> engine(static_cast<HostEngine*>(user));
  if (JNIEnv* env = environment()) env->DeleteGlobalRef(engine->engine);
}

p3m_session* session(jlong handle) { return reinterpret_cast<p3m_session*>(handle); }

p3m_model* program(jlong handle) { return reinterpret_cast<p3m_model*>(handle); }

}  // namespace

extern "C" {

JNIEXPORT jint JNI_OnLoad(JavaVM* given, void*) {
  vm = given;
  JNIEnv* env = environment();
  if (!env) return JNI_ERR;
  jclass found = env->FindClass("org/phi3mobile/Native");
  if (!found) return JNI_ERR;
  native_class = static_cast<jclass>(env->NewGlobalRef(found));
  failed_id = env->GetStaticMethodID(found, "failed", "([B)Lorg/phi3mobile/Phi3Exception;");
  forward_id = env->GetStaticMethodID(found, "forward", "(Lorg/phi3mobile/Engine;[JJZLjava/nio/ByteBuffer;)[B");
  reset_id = env->GetStaticMethodID(found, "reset", "(Lorg/phi3mobile/Engine;)V");
  close_id = env->GetStaticMethodID(found, "close", "(Lorg/phi3mobile/Engine;)V");
  return failed_id && forward_id && reset_id && close_id ? JNI_VERSION_1_6 : JNI_ERR;
}

JNIEXPORT jint JNICALL Java_org_phi3mobile_Native_apiVersion(JNIEnv*, jclass) { return p3m_api_version(); }

JNIEXPORT jbyteArray JNICALL Java_org_phi3mobile_Native_runtimeVersion(JNIEnv* env, jclass) {
  const char* version = p3m_runtime_version();
  return bytes(env, version, std::strlen(version));
}

JNIEXPORT jboolean JNICALL Java_org_phi3mobile_Native_hasOperator(JNIEnv* env, jclass, jbyteArray name) {
  return p3m_has_operator(text(env, name).c_str()) != 0;
}

JNIEXPORT jbyteArray JNICALL Java_org_phi3mobile_Native_manifest(JNIEnv* env, jclass, jbyteArray folder) {
  char error[kError] = "";
  p3m_bundle* bundle = p3m_bundle_open(text(env, folder).c_str(), error, sizeof error);
  if (!bundle) return fail(env, error), nullptr;
  const char* manifest = p3m_bundle_manifest(bundle);
  jbyteArray made = bytes(env, manifest, std::strlen(manifest));
  p3m_bundle_close(bundle);
  return made;
}

JNIEXPORT jlong JNICALL Java_org_phi3mobile_Native_open(JNIEnv* env, jclass, jbyteArray folder, jbyteArray options) {
  char error[kError] = "";
  p3m_session* made = p3m_session_open(text(env, folder).c_str(), text(env, options).c_str(), error, sizeof error);
  if (!made) fail(env, error);
  return reinterpret_cast<jlong>(made);
}

JNIEXPORT jlong JNICALL Java_org_phi3mobile_Native_openWith(
    JNIEnv* env, jclass, jbyteArray folder, jobject engine, jlong vocab) {
  auto* user = new HostEngine{env->NewGlobalRef(engine), vocab};
  const p3m_engine given{P3M_API_VERSION, user, host_forward, host_reset, host_close};
  char error[kError] = "";
  p3m_session* made = p3m_session_open_with(text(env, folder).c_str(), &given, error, sizeof error);
  if (!made) fail(env, error);  // the engine is closed
  return reinterpret_cast<jlong>(made);
}

JNIEXPORT jlong JNICALL Java_org_phi3mobile_Native_picture(
    JNIEnv* env, jclass, jlong handle, jbyteArray pixels, jint width, jint height, jint channels, jint orientation) {
  jbyte* given = env->GetByteArrayElements(pixels, nullptr);
  if (!given) return -1;
  char error[kError] = "";
  const int64_t number = p3m_session_picture(
      session(handle), reinterpret_cast<const uint8_t*>(given), width, height, 0, channels, orientation, error, sizeof error);
  env->ReleaseByteArrayElements(pixels, given, JNI_ABORT);
  if (number < 0) fail(env, error);
  return number;
}

JNIEXPORT void JNICALL Java_org_phi3mobile_Native_start(JNIEnv* env, jclass, jlong handle, jbyteArray request) {
  char error[kError] = "";
  if (p3m_session_start(session(handle), text(env, request).c_str(), error, sizeof error)) fail(env, error);
}

JNIEXPORT jbyteArray JNICALL Java_org_phi3mobile_Native_next(JNIEnv* env, jclass, jlong handle) {
  const char* said = nullptr;
  size_t size = 0;
  const auto kind = jbyte(p3m_session_next(session(handle), &said, &size));
  jbyteArray made = env->NewByteArray(jsize(size + 1));
  if (!made) return nullptr;
  env->SetByteArrayRegion(made, 0, 1, &kind);
  env->SetByteArrayRegion(made, 1, jsize(size), reinterpret_cast<const jbyte*>(said));
  return made;
}

JNIEXPORT void JNICALL Java_org_phi3mobile_Native_cancel(JNIEnv*, jclass, jlong handle) { p3m_session_cancel(session(handle)); }

JNIEXPORT void JNICALL Java_org_phi3mobile_Native_reset(JNIEnv*, jclass, jlong handle) { p3m_session_reset(session(handle)); }

JNIEXPORT jlong JNICALL Java_org_phi3mobile_Native_save(JNIEnv* env, jclass, jlong handle, jbyteArray path) {
  char error[kError] = "";
  const int64_t size = p3m_session_save(session(handle), text(env, path).c_str(), error, sizeof error);
  if (size < 0) fail(env, error);
  return size;
}

JNIEXPORT jlong JNICALL Java_org_phi3mobile_Native_restore(JNIEnv* env, jclass, jlong handle, jbyteArray path) {
  char error[kError] = "";
  const int64_t count = p3m_session_restore(session(handle), text(env, path).c_str(), error, sizeof error);
  if (count < 0) fail(env, error);
  return count;
}

JNIEXPORT void JNICALL Java_org_phi3mobile_Native_close(JNIEnv*, jclass, jlong handle) { p3m_session_close(session(handle)); }

JNIEXPORT jlong JNICALL Java_org_phi3mobile_Native_programOpen(
    JNIEnv* env, jclass, jbyteArray pte, jbyteArray packed, jint threads) {
  char error[kError] = "";
  p3m_model* made = p3m_open(text(env, pte).c_str(), text(env, packed).c_str(), threads, error, sizeof error);
  if (!made) fail(env, error);
  return reinterpret_cast<jlong>(made);
}

JNIEXPORT jint JNICALL Java_org_phi3mobile_Native_programPacked(JNIEnv*, jclass, jlong handle) {
  return p3m_packed_state(program(handle));
}

JNIEXPORT jlong JNICALL Java_org_phi3mobile_Native_programForward(
    JNIEnv* env, jclass, jlong handle, jlongArray tokens, jlong position) {
  std::vector<int64_t> ids(size_t(env->GetArrayLength(tokens)));
  env->GetLongArrayRegion(tokens, 0, jsize(ids.size()), reinterpret_cast<jlong*>(ids.data()));
  if (p3m_prefill(program(handle), ids.data(), int64_t(ids.size()), position)) {
    return fail(env, p3m_error(program(handle))), -1;
  }
  int64_t vocab = 0;
  const float* last = p3m_logits(program(handle), nullptr, &vocab);
  return std::max_element(last, last + vocab) - last;
}

JNIEXPORT void JNICALL Java_org_phi3mobile_Native_programClose(JNIEnv*, jclass, jlong handle) { p3m_close(program(handle)); }

JNIEXPORT void JNICALL Java_org_phi3mobile_Native_forget(JNIEnv* env, jclass, jbyteArray path) {
  const int file = open(text(env, path).c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  close(file);
}

}  // extern "C"
