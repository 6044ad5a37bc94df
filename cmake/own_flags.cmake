# recycled_warnings and recycled_own_flags: how our tests, benchmarks and examples are compiled. Never exported.

include(CheckCXXCompilerFlag)

set(march_default "")
if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CROSSCOMPILING)
  set(march_default native)
endif()
set(RECYCLED_MARCH "${march_default}" CACHE STRING
  "-march of our tests, benchmarks and examples; empty for the compiler's default")

add_library(recycled_warnings INTERFACE)
target_link_libraries(recycled_warnings INTERFACE recycled)
if(NOT MSVC)
  target_compile_options(recycled_warnings INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
endif()

# g++ 12 takes the undefined registers of its own AVX-512 intrinsics for mistakes of their callers
# (GCC bug 105593). clang++ still looks for uninitialized values in the same sources.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(recycled_warnings INTERFACE -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

add_library(recycled_own_flags INTERFACE)
target_link_libraries(recycled_own_flags INTERFACE recycled_warnings)
if(RECYCLED_MARCH STREQUAL "native")
  check_cxx_compiler_flag(-march=native RECYCLED_HAS_MARCH_NATIVE)
endif()
if(RECYCLED_MARCH AND (RECYCLED_HAS_MARCH_NATIVE OR NOT RECYCLED_MARCH STREQUAL "native"))
  target_compile_options(recycled_own_flags INTERFACE -march=${RECYCLED_MARCH})
endif()
