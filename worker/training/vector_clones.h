// One source, compiled for several instruction sets and chosen at start: the same kind of machine
// gives the same bytes. Sanitizers do not get along with the choice, which happens before they
// start.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SAE_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SAE_VECTOR_CLONES
#endif
