// Stands for gloo's header of this name, whose types libtorch only points to.
#pragma once
#include "types.h"
