// The places of an answer, each with the schemas that hold there: is there one that llguidance takes and can't fill?
// A place is known by its schemas: a property "a" of an object under allOf by all that say something of "a".
#pragma once

#include "guide/document.h"

namespace phi3mobile {

// InputError: the first place that can't be filled.
void check_places(const Schemas& schemas);

}  // namespace phi3mobile
