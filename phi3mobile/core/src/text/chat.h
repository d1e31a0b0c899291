// Messages to the text that a model was trained on, from the segments of a template (phi3mobile/text/segments.py).
#pragma once

#include "base/json.h"
#include "text/tokenizer.h"

#include <vector>

namespace phi3mobile {

// InputError unless `messages` is a conversation that waits for a reply: a list of objects {"role", "content"}.
void check_messages(const Json& messages);

// The conversation as text: the template's own is trusted, contents are not. InputError: no such conversation, a role that
// the template lacks, or no segments.
std::vector<Span> spans(const Json& segments, const Json& messages);

}  // namespace phi3mobile
