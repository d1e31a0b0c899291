// What p3m says to a session: messages, with pictures from PPM and PGM files of eight bits (it decodes no photos; `djpeg`,
// `pngtopnm`, `ffmpeg` and others write such files).
#pragma once

#include "base/json.h"
#include "phi3mobile_session.h"

#include <cstdint>
#include <string>
#include <vector>

namespace phi3mobile {

// Shows a picture's file to the session; gives its number. InputError: no such file, another format, more than eight bits, cut
// short, or nothing that this session sees.
int64_t shown(p3m_session* session, const std::string& path);

Json message(const char* role, const std::string& content);

// The user's message: a text, below its images.
Json question(const std::string& text, const std::vector<int64_t>& images);

}  // namespace phi3mobile
