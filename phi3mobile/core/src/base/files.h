// Files: read whole, hashed in pieces, written whole or not at all. InputError names the file and says what is wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

namespace phi3mobile {

bool is_file(const std::string& path);
bool is_folder(const std::string& path);
// Bytes of a plain file; -1: there is none.
int64_t file_size(const std::string& path);
std::string read_file(const std::string& path);
// Makes a folder and those above it that are not there.
void make_folders(const std::string& path);

class InputFile {
 public:
  explicit InputFile(const std::string& path);
  // So many bytes, fewer at the end.
  size_t read(void* to, size_t size);
  // All of them. InputError: the file is shorter.
  void exactly(void* to, size_t size);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

// Written beside and renamed by finish(); without it the file at the path stays as it was.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(const void* from, size_t size);
  void finish();

 private:
  [[noreturn]] void fail(const char* what);

  std::string path_, beside_;
  std::FILE* file_;
};

}  // namespace phi3mobile
