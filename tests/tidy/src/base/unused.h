// A header that nobody includes.
#pragma once
#include <cuda_runtime.h>
