#include "tests/tape/sources.h"
