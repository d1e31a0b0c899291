// How an answer is made where nobody says, as phi3mobile/session/defaults.py.
#include "base/error.h"
#include "session/session.h"

#include <string>

namespace phi3mobile {

namespace {

constexpr int64_t kSmall = 1'000'000'000;  // below so many parameters, greedy decoding repeats itself without a guard
constexpr double kGuard = 1.1;             // on the answer alone: on the prompt it would spoil quoting

double number(const Json& given, const char* name) {
  if (!given.is_number()) throw InputError(std::string(name) + " is " + given.dump() + "; it must be a number");
  return given.number();
}

int64_t integer(const Json& given, const char* name) {
  if (!given.is_integer()) throw InputError(std::string(name) + " is " + given.dump() + "; it must be an integer");
  return given.integer();
}

// What `given` says by name, into `to`.
void take(const Json& given, Sampling& to) {
  if (const Json& value = given["temperature"]; !value.is_null()) to.temperature = number(value, "temperature");
  if (const Json& value = given["top_k"]; !value.is_null()) to.top_k = integer(value, "top_k");
  if (const Json& value = given["top_p"]; !value.is_null()) to.top_p = number(value, "top_p");
  if (const Json& value = given["min_p"]; !value.is_null()) to.min_p = number(value, "min_p");
  if (const Json& value = given["repetition_penalty"]; !value.is_null()) {
    to.repetition_penalty = number(value, "repetition_penalty");
    to.penalize_prompt = true;
  }
  if (const Json& value = given["seed"]; !value.is_null()) to.seed = integer(value, "seed");
}

}  // namespace

Sampling default_sampling(const Json& generation, int64_t parameters) {
  const Json& drawn = generation["do_sample"];
  const Json& temperature = generation["temperature"];
  Sampling sampling;
  if (drawn.is_bool() && drawn.boolean() && !(temperature.is_number() && temperature.number() == 0)) {
    sampling.temperature = 1;
    take(generation, sampling);
  } else if (const Json& penalty = generation["repetition_penalty"]; penalty.is_number() || parameters >= kSmall) {
    sampling.repetition_penalty = penalty.is_number() ? penalty.number() : 1;
  } else {
    sampling.repetition_penalty = kGuard;
    sampling.penalize_prompt = false;
  }
  sampling.check();
  return sampling;
}

Sampling chosen_sampling(const Json& request, Sampling chosen) {
  const Json& temperature = request["temperature"];
  if (temperature.is_number() && temperature.number() == 0) {
    Sampling greedy;
    greedy.repetition_penalty = chosen.repetition_penalty;
    greedy.penalize_prompt = chosen.penalize_prompt;
    chosen = greedy;
  }
  take(request, chosen);
  chosen.check();
  std::string idle;
  for (const char* name : {"top_k", "top_p", "min_p", "seed"}) {
    if (chosen.temperature == 0 && !request[name].is_null()) idle += (idle.empty() ? "" : ", ") + std::string(name);
  }
  if (!idle.empty()) {
    throw InputError(idle + " has no effect at temperature 0 (greedy): give a temperature too, such as 0.7");
  }
  return chosen;
}

}  // namespace phi3mobile
