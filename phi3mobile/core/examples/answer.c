/* One answer of a bundle, streamed: answer BUNDLE. As plain C as an app in any language needs it (docs/core.md). */
#include "phi3mobile_session.h"
#include <stdio.h>

int main(int count, char** arguments) {
  if (count != 2) return fprintf(stderr, "usage: answer BUNDLE\n"), 2;
  char error[500];
  p3m_session* session = p3m_session_open(arguments[1], "{\"cache\": \"/tmp/p3m\"}", error, sizeof error);
  if (!session) return fprintf(stderr, "%s\n", error), 1;
  const char* request = "{\"messages\": [{\"role\": \"user\", \"content\": \"Name three rivers.\"}], \"max_tokens\": 60}";
  if (p3m_session_start(session, request, error, sizeof error)) return fprintf(stderr, "%s\n", error), 1;
  const char* text;
  size_t size;
  for (int kind; (kind = p3m_session_next(session, &text, &size)) > P3M_EVENT_DONE;) {
    if (kind == P3M_EVENT_TEXT) fwrite(text, 1, size, stdout);
  }
  printf("\n%s\n", text); /* the statistics, or what went wrong */
  p3m_session_close(session);
}
