#include "base/files.h"

#include "base/error.h"

#include <atomic>
#include <cerrno>
#include <cstring>

#include <sys/stat.h>
#include <unistd.h>

namespace phi3mobile {

namespace {

bool is(const std::string& path, mode_t kind, struct stat* status) {
  return ::stat(path.c_str(), status) == 0 && (status->st_mode & S_IFMT) == kind;
}

}  // namespace

bool is_file(const std::string& path) { return file_size(path) >= 0; }

bool is_folder(const std::string& path) {
  struct stat status;
  return is(path, S_IFDIR, &status);
}

int64_t file_size(const std::string& path) {
  struct stat status;
  return is(path, S_IFREG, &status) ? int64_t(status.st_size) : -1;
}

std::string read_file(const std::string& path) {
  InputFile in(path);
  std::string text(size_t(std::max<int64_t>(file_size(path), 0)), '\0');
  in.exactly(text.data(), text.size());
  return text;
}

void make_folders(const std::string& path) {
  for (size_t end = 1; end <= path.size(); ++end) {
    if (end < path.size() && path[end] != '/') continue;
    const std::string folder = path.substr(0, end);
    if (::mkdir(folder.c_str(), 0777) != 0 && !is_folder(folder)) {
      throw InputError(folder + " can't be made (" + std::strerror(errno) + "); choose another place or free some space");
    }
  }
}

InputFile::InputFile(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
  if (!file_) throw InputError(path + " can't be read (" + std::strerror(errno) + "); copy it again");
}

size_t InputFile::read(void* to, size_t size) {
  const size_t count = std::fread(to, 1, size, file_.get());
  if (count < size && std::ferror(file_.get()))
    throw InputError(path_ + " can't be read (" + std::strerror(errno) + "); copy it again");
  return count;
}

void InputFile::exactly(void* to, size_t size) {
  if (read(to, size) != size) throw InputError(path_ + " is shorter than it should be; copy it again");
}

OutputFile::OutputFile(const std::string& path) : path_(path) {
  static std::atomic<unsigned> count{0};  // sessions of one process may write the same file
  beside_ = path + "." + std::to_string(::getpid()) + "-" + std::to_string(count++) + ".partial";
  file_ = std::fopen(beside_.c_str(), "wb");
  if (!file_) fail("can't be written");
}

OutputFile::~OutputFile() {
  if (file_) {
    std::fclose(file_);
    std::remove(beside_.c_str());
  }
}

void OutputFile::write(const void* from, size_t size) {
  if (std::fwrite(from, 1, size, file_) != size) fail("can't be written");
}

void OutputFile::finish() {
  if (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0) fail("can't be written");
  std::fclose(file_);
  file_ = nullptr;
  if (std::rename(beside_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    std::remove(beside_.c_str());
    errno = error;
    fail("can't be put in place");
  }
}

void OutputFile::fail(const char* what) {
  throw InputError(path_ + " " + what + " (" + std::strerror(errno) + "); choose another place or free some space");
}

}  // namespace phi3mobile
