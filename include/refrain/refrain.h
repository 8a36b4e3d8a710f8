#pragma once

/// Everything in one include.
#include "refrain/bytes.h"
#include "refrain/checkpoint.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/selective.h"
#include "refrain/sequential.h"
#include "refrain/tape.h"
