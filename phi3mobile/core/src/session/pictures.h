// A session's pictures, as phi3mobile/session/pictures.py: each distinct one gets negative ids, one a row, by which a KV cache
// knows it again. Rows are computed when a forward first needs them, view by view, and kept.
#pragma once

#include "session/features.h"
#include "session/rows.h"
#include "session/tower.h"
#include "session/vision.h"

#include <list>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace phi3mobile {

class Pictures : public Sight {
 public:
  // num_crops: crops of a picture at most; none: the tower's own number. InputError: a number that can't be.
  Pictures(std::unique_ptr<Tower> tower, std::optional<int64_t> num_crops);

  // Rows are also kept in a folder. runtime: what the tower is computed by. InputError: no folder.
  void keep_in(std::string folder, const std::string& runtime) { features_.emplace(std::move(folder), tower_->info, runtime); }

  // Takes a picture; gives its number, from 1 on: equal pixels have the same. InputError: too narrow.
  int64_t add(const Pixels& picture);
  int64_t count() const { return int64_t(pictures_.size()); }
  // One id for each row of picture `number`. InputError: no picture has it.
  std::vector<int64_t> ids(int64_t number) const;
  // The most crops a picture may have so that a prompt with these ids loses enough tokens to fit `room`; none: there is none.
  std::optional<int64_t> smaller(const std::vector<int64_t>& ids, int64_t room) const;

  std::optional<std::string> look(const int64_t* ids, int64_t count) override;
  const float* rows(const int64_t* ids, int64_t count) override;

 private:
  struct Picture {
    std::string name;  // hash of its pixels
    CropPlan plan;
    std::vector<uint8_t> fitted;
  };
  struct Kept {
    int64_t index;
    std::vector<float> rows;  // [tokens, hidden]
  };
  // What is seen of a picture so far.
  struct Looking {
    int64_t index = -1, views = 0;
    std::vector<float> features;  // [views, 576, width]
  };

  const Kept* kept(int64_t index);
  void keep(int64_t index, std::vector<float> rows);
  void see();
  std::vector<float> projected(const CropPlan& plan) const;

  std::unique_ptr<Tower> tower_;
  int64_t num_crops_;
  std::optional<Features> features_;
  std::vector<Picture> pictures_;
  std::unordered_map<std::string, int64_t> known_;  // by the hash of their pixels
  std::list<Kept> kept_;                            // the last used first
  size_t room_ = 0;                                 // for so many
  Looking looking_;
  std::vector<float> given_;  // what rows() gave
};

}  // namespace phi3mobile
