# What every room shares: where includes start, which warnings are on, how the linker is chosen.

# Includes are written from the repository root: "storage/activation_cache.h".
add_library(saesweep_includes INTERFACE)
add_library(saesweep::includes ALIAS saesweep_includes)
target_include_directories(saesweep_includes INTERFACE ${CMAKE_SOURCE_DIR})

add_library(saesweep_warnings INTERFACE)
add_library(saesweep::warnings ALIAS saesweep_warnings)
target_compile_options(saesweep_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow $<$<BOOL:${SAESWEEP_WERROR}>:-Werror>)

find_program(SAESWEEP_CCACHE ccache)
if(SAESWEEP_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Precompiled headers are cached only with these two relaxations.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros
      ${SAESWEEP_CCACHE})
endif()

# clang writes the time of a precompiled header into it, and ccache would never meet it again.
if(SAESWEEP_PCH AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  add_compile_options("SHELL:-Xclang -fno-pch-timestamp")
endif()

include(CheckLinkerFlag)
check_linker_flag(CXX -fuse-ld=lld SAESWEEP_HAVE_LLD)
if(SAESWEEP_HAVE_LLD)
  add_link_options(-fuse-ld=lld)
endif()

# saesweep_torch_library(name SOURCES ... LIBS ...): a room that uses LibTorch. ATen/ATen.h is
# precompiled once and shared.
function(saesweep_torch_target target)
  target_link_libraries(${target} PRIVATE saesweep::warnings)
  target_link_libraries(${target} PUBLIC LibTorch::torch)
  if(SAESWEEP_PCH AND NOT target STREQUAL saesweep_tensor)
    target_precompile_headers(${target} REUSE_FROM saesweep_tensor)
  endif()
endfunction()

# saesweep_test(name SOURCES a.cpp b.cpp LIBS saesweep::core [TORCH] [LABELS unit]): one GoogleTest
# program, registered with CTest as a whole (each test binary is one CTest entry: start-up counts).
function(saesweep_test name)
  cmake_parse_arguments(ARG "TORCH" "TIMEOUT" "SOURCES;LIBS;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} saesweep::test_support GTest::gmock GTest::gtest_main
                        saesweep::warnings)
  if(ARG_TORCH)
    saesweep_torch_target(${name})
  else()
    target_compile_options(${name} PRIVATE ${SAESWEEP_TEST_OPTIONS})
    if(SAESWEEP_PCH)
      target_precompile_headers(${name} REUSE_FROM saesweep_test_headers)
    endif()
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# saesweep_fuzz(name source LIBS ...): a libFuzzer target, built with -DSAESWEEP_FUZZ=ON (clang) into
# fuzz/; the target `fuzzers` builds them all.
function(saesweep_fuzz name source)
  if(NOT SAESWEEP_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "LIBS" ${ARGN})
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)
  endif()
  add_dependencies(fuzzers ${name})
endfunction()
