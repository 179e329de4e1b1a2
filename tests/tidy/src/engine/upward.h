#include "server/nothing.h"
#include "text/words.h"
#include <nlohmann/json.hpp>
