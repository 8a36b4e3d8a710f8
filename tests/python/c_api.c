#include "refrain/c_api.h"

int main(void) { return refrain_api_version() == REFRAIN_C_API_VERSION ? 0 : 1; }
