// A bundle: model files, tokenizer and manifest.json in one folder, checked as phi3mobile/bundle.py does.
#pragma once

#include "base/json.h"
#include "session/engine.h"
#include "session/session.h"
#include "session/tower.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace phi3mobile {

class Bundle {
 public:
  // Reads and checks the manifest, and that every file is there with its size; hashes are verify's. InputError: no folder, no
  // or a damaged manifest, a newer format, a file missing or of another size.
  explicit Bundle(std::string folder);

  // Compares the SHA-256 of every file. progress(done, total) in bytes, now and then; false from it ends the work. InputError:
  // a damaged file; "verification was stopped".
  void verify(const std::function<bool(int64_t, int64_t)>& progress) const;

  const std::string& folder() const { return folder_; }
  const Json& manifest() const { return manifest_; }
  EngineInfo info() const;
  std::string program() const { return path(manifest_["runtime"]["program"].string()); }
  // SHA-256 of the program; empty where that is a folder.
  std::string program_hash() const;
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  // What a session needs of it; reads the tokenizer.
  Parts parts() const;
  // The manifest's section of a model that sees pictures; null: it sees none.
  const Json& vision() const { return manifest_["vision"]; }
  // What it says of the tower; reads the separators. None: there is none. InputError: separators of another size.
  std::optional<TowerInfo> tower() const;

 private:
  std::string folder_;
  Json manifest_;
};

}  // namespace phi3mobile
