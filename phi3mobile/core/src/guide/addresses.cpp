#include "guide/addresses.h"

#include "base/utf8.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace phi3mobile {

namespace {

struct Url {
  std::string scheme, host, path, query, fragment;
  bool has_host = false;

  explicit Url(std::string_view text, std::string inherited) : scheme(std::move(inherited)) {
    const auto letter = [](char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; };
    const size_t colon = text.find(':');
    if (colon != text.npos && colon && letter(text[0]) &&
        std::all_of(text.begin(), text.begin() + std::ptrdiff_t(colon),
            [&](char c) { return letter(c) || (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.'; })) {
      scheme = text.substr(0, colon);
      for (char& c : scheme) c = char(c >= 'A' && c <= 'Z' ? c | 32 : c);
      text.remove_prefix(colon + 1);
    }
    if (text.substr(0, 2) == "//") {
      has_host = true;
      const size_t end = std::min(text.find_first_of("/?#", 2), text.size());
      host = text.substr(2, end - 2);
      text.remove_prefix(end);
    }
    if (const size_t mark = text.find('#'); mark != text.npos) {
      fragment = text.substr(mark + 1);
      text = text.substr(0, mark);
    }
    if (const size_t mark = text.find('?'); mark != text.npos) {
      query = text.substr(mark + 1);
      text = text.substr(0, mark);
    }
    path = text;
  }

  std::string text() const {
    std::string made = scheme.empty() ? "" : scheme + ":";
    if (!host.empty()) made += "//" + host + (!path.empty() && path[0] != '/' ? "/" : "");
    made += path;
    if (!query.empty()) made += "?" + query;
    return fragment.empty() ? made : made + "#" + fragment;
  }
};

std::vector<std::string> split(std::string_view text, char by) {
  std::vector<std::string> parts;
  for (size_t end; (end = text.find(by)) != text.npos; text.remove_prefix(end + 1)) parts.emplace_back(text.substr(0, end));
  parts.emplace_back(text);
  return parts;
}

bool is_relative(const std::string& scheme) {
  constexpr std::array<const char*, 7> known{"", "http", "https", "file", "ftp", "ws", "wss"};
  return std::find(known.begin(), known.end(), scheme) != known.end();
}

// RFC 3986's path of a reference, without dots.
std::string merged(const std::string& base, const std::string& path) {
  std::vector<std::string> segments;
  if (path[0] != '/') {
    segments = split(base, '/');
    if (!segments.back().empty()) segments.pop_back();
  }
  for (auto& one : split(path, '/')) segments.push_back(std::move(one));
  if (path[0] != '/' && segments.size() > 2) {
    segments.erase(std::remove(segments.begin() + 1, segments.end() - 1, ""), segments.end() - 1);
  }
  std::vector<std::string> resolved;
  for (const std::string& one : segments) {
    if (one == "..") {
      if (!resolved.empty()) resolved.pop_back();
    } else if (one != ".") {
      resolved.push_back(one);
    }
  }
  if (segments.back() == "." || segments.back() == "..") resolved.emplace_back();
  std::string made;
  for (size_t i = 0; i < resolved.size(); ++i) made += (i ? "/" : "") + resolved[i];
  return made.empty() ? "/" : made;
}

std::string unquoted(std::string_view text) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
  };
  std::string bytes;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 && digit(text[i + 2]) >= 0) {
      bytes += char(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    } else {
      bytes += text[i];
    }
  }
  return replaced_utf8(bytes);
}

std::string replaced(std::string text, std::string_view what, std::string_view by) {
  for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += by.size()) text.replace(at, what.size(), by);
  return text;
}

// The end's # means nothing.
std::string whole(std::string address) {
  if (!address.empty() && address.back() == '#') address.pop_back();
  return address;
}

}  // namespace

std::string joined_address(const std::string& base, const std::string& reference) {
  if (base.empty()) return reference;
  if (reference.empty()) return base;
  const Url from(base, "");
  Url url(reference, from.scheme);
  if (url.scheme != from.scheme || !is_relative(url.scheme)) return reference;
  if (!url.host.empty()) return url.text();
  url.host = from.host;
  if (url.path.empty()) {
    url.path = from.path;
    if (url.query.empty()) url.query = from.query;
  } else {
    url.path = merged(from.path, url.path);
  }
  return url.text();
}

namespace {

std::string address_of(const std::string& base, const std::string& reference) {
  return !reference.empty() && reference[0] == '#' ? base.substr(0, base.find('#')) + reference
                                                   : joined_address(base, reference);
}

}  // namespace

Addresses::Addresses(const Json& document) {
  resources_[""] = &document;
  locate(document, "");
}

void Addresses::locate(const Json& node, std::string base) {
  if (node.is_array()) {
    for (const Json& one : node.array()) locate(one, base);
  }
  if (!node.is_object()) return;
  const Json& address = node.has("$id") ? node["$id"] : node["id"];  // draft 4's is id
  if (address.is_string()) {
    const std::string here = whole(address_of(base, address.string()));
    resources_.emplace(here, &node);
    base = here.substr(0, here.find('#'));
  }
  if (const Json& anchor = node["$anchor"]; anchor.is_string()) resources_.emplace(base + "#" + anchor.string(), &node);
  bases_[&node] = base;
  for (const auto& [key, value] : node.object()) {
    const bool data = key == "const" || key == "enum" || key == "default" || key == "examples";
    if (!data || value.is_object()) locate(value, base);
  }
}

const Json* Addresses::find(const std::string& reference, const Json& source, std::string* why) const {
  const auto base = bases_.find(&source);
  const std::string address = address_of(base == bases_.end() ? "" : base->second, reference);
  std::string fragment;
  auto found = resources_.find(whole(address));
  if (found == resources_.end()) {
    const size_t mark = address.find('#');
    if (mark != address.npos) fragment = address.substr(mark + 1);
    found = resources_.find(address.substr(0, mark));
  }
  if (found == resources_.end() || (!fragment.empty() && fragment[0] != '/')) return nullptr;
  const Json* node = found->second;
  const auto parts = split(unquoted(fragment), '/');
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::string part = replaced(replaced(parts[i], "~1", "/"), "~0", "~");
    const bool number = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == part.npos;
    if (node->is_object() && node->has(part)) {
      node = &(*node)[part];
    } else if (node->is_array() && number && std::stoul(part) < node->array().size()) {
      node = &node->array()[std::stoul(part)];
    } else {
      *why = ": there is no " + part;
      return nullptr;
    }
  }
  return node;
}

int deepest(const Edges& edges) {
  struct Step {
    size_t node, next;
    int depth;
  };
  std::vector<bool> seen(edges.size());
  std::vector<Step> stack{{0, 0, 0}};
  seen[0] = true;
  int most = 0;
  while (!stack.empty()) {
    Step& step = stack.back();
    if (step.next == edges[step.node].size()) {
      stack.pop_back();
      continue;
    }
    const auto [node, levels] = edges[step.node][step.next++];
    if (seen[node]) continue;
    seen[node] = true;
    const int depth = step.depth + levels;
    most = std::max(most, depth);
    stack.push_back({node, 0, depth});
  }
  return most;
}

}  // namespace phi3mobile
