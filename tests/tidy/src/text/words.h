// Words.
#pragma once
