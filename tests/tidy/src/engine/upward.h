#include <nlohmann/json.hpp>
#include "server/nothing.h"
#include "text/words.h"
