// Compiling one file for a newer instruction set than the rest, with GCC and Clang on x86-64; others get the portable code.
#pragma once

#if (defined(__x86_64__)) && (defined(__GNUC__) || defined(__clang__))
#define IPFAST_X86_VECTORS 1
#else
#define IPFAST_X86_VECTORS 0
#endif

#define IPFAST_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define IPFAST_TARGET_BEGIN(features) \
    IPFAST_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define IPFAST_TARGET_END IPFAST_PRAGMA(clang attribute pop)
#else
#define IPFAST_TARGET_BEGIN(features) IPFAST_PRAGMA(GCC push_options) IPFAST_PRAGMA(GCC target(features))
#define IPFAST_TARGET_END IPFAST_PRAGMA(GCC pop_options)
#endif
