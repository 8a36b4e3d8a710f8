#pragma once

#include <stddef.h>

#include "refrain/api.h"

/// Gives the drawing of reports to other languages: librefrain_report.so, which needs no LibTorch and no librefrain.so.
/// Python's package loads it for the pictures of its results.
#ifdef __cplusplus
extern "C" {
#endif

/// Draws documents (docs/design/report.md) as one page, as `refrain report` does.
///
/// @param documents  `count` JSON texts, in the order of their sections.
/// @param error      set to why it failed, to be freed; null if it did not.
/// @return the page, to be freed with `refrain_report_free`; null if a document is not as its kind must be.
/// Cost: milliseconds a timeline. Threads: any.
REFRAIN_API char* refrain_report_html(const char* const* documents, size_t count, char** error);

/// Frees text of this library; null is ignored.
REFRAIN_API void refrain_report_free(char* text);

#ifdef __cplusplus
}  // extern "C"
#endif
