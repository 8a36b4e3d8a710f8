#pragma once

/// Everything in one include.
#include "refrain/breakdown.h"
#include "refrain/bytes.h"
#include "refrain/checkpoint.h"
#include "refrain/error.h"
#include "refrain/explain.h"
#include "refrain/memory.h"
#include "refrain/memory_tracker.h"
#include "refrain/nn.h"
#include "refrain/selective.h"
#include "refrain/sequential.h"
#include "refrain/tape.h"
#include "refrain/timeline.h"
#include "refrain/verify.h"
