// One compiled version of a function per vector width, the best of which is taken at run time.
// Nothing here contracts a product and a sum (-ffp-contract=off), so all give the same values.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define NIBBLE_VECTOR_WIDTHS [[gnu::target_clones("avx512f", "avx2", "default")]]
#else
#define NIBBLE_VECTOR_WIDTHS
#endif
