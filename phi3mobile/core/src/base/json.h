// JSON (RFC 8259, strict): a document in memory, its reader and writer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace phi3mobile {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the text; of equal names the last counts

  Json() = default;
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t(value)) {}
  Json(int64_t value) : value_(value) {}
  Json(double value) : value_(value) {}
  Json(const char* text) : value_(std::string(text)) {}
  Json(std::string text) : value_(std::move(text)) {}
  Json(Array items) : value_(std::move(items)) {}
  Json(Object members) : value_(std::move(members)) {}

  // The value of a whole text in UTF-8. InputError: "<what> is not JSON: <why> at byte N".
  static Json parse(std::string_view text, const std::string& what);

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  // The value, which must be of this kind (is_*).
  bool boolean() const { return std::get<bool>(value_); }
  int64_t integer() const { return std::get<int64_t>(value_); }
  double number() const { return is_integer() ? double(integer()) : std::get<double>(value_); }
  const std::string& string() const { return std::get<std::string>(value_); }
  const Array& array() const { return std::get<Array>(value_); }
  const Object& object() const { return std::get<Object>(value_); }
  Array& array() { return std::get<Array>(value_); }
  Object& object() { return std::get<Object>(value_); }

  // The member of a name; a null value where there is none, or this is no object.
  const Json& operator[](std::string_view name) const;
  bool has(std::string_view name) const;
  // Sets a member, in the place of one of that name.
  void set(std::string_view name, Json value);
  // Moves the value of a member out, which becomes null; null: there is none.
  Json take(std::string_view name);

  // One line of JSON: numbers as short as they read back and as Python writes them, texts in UTF-8. spaced: ", " and ": " as
  // Python.
  std::string dump(bool spaced = false) const;

 private:
  const Json* find(std::string_view name) const;

  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

// A text as JSON writes it, with its quotes.
std::string quoted(std::string_view text);

}  // namespace phi3mobile
