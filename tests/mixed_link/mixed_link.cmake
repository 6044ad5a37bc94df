# One program of one source compiled for several instruction sets, as happens when a host links libraries that
# were built apart: the parts must not get in each other's way, and must agree.

if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  return()
endif()

include(CheckCXXSourceRuns)

function(cpu_supports variable)
  set(conditions ${ARGN})
  list(TRANSFORM conditions REPLACE "(.+)" "__builtin_cpu_supports(\"\\1\")")
  list(JOIN conditions " && " condition)
  check_cxx_source_runs("int main() { return (${condition}) ? 0 : 1; }" ${variable})
endfunction()

set(levels x86-64)
cpu_supports(RECYCLED_CPU_IS_X86_64_V2 sse4.2 ssse3 popcnt)
if(RECYCLED_CPU_IS_X86_64_V2)
  list(APPEND levels x86-64-v2)
endif()
cpu_supports(RECYCLED_CPU_IS_X86_64_V3 avx2 bmi2 fma)
if(RECYCLED_CPU_IS_X86_64_V3)
  list(APPEND levels x86-64-v3)
endif()
cpu_supports(RECYCLED_CPU_IS_X86_64_V4 avx2 bmi2 fma avx512f avx512bw avx512cd avx512dq avx512vl)
if(RECYCLED_CPU_IS_X86_64_V4)
  list(APPEND levels x86-64-v4)
endif()

set(parts ${levels})
list(TRANSFORM parts REPLACE "-" "_")
list(TRANSFORM parts REPLACE "(.+)" "X(decode_\\1)")
list(JOIN parts " " parts)

add_executable(mixed_link mixed_link/main.cpp)
target_compile_definitions(mixed_link PRIVATE "MIXED_LINK_PARTS=${parts}")
target_link_libraries(mixed_link PRIVATE recycled_own_flags)
foreach(level IN LISTS levels)
  string(REPLACE "-" "_" name ${level})
  add_library(mixed_link_${name} OBJECT mixed_link/part.cpp)
  target_compile_definitions(mixed_link_${name} PRIVATE PART_NAME=decode_${name} "MIXED_LINK_PARTS=${parts}")
  target_compile_options(mixed_link_${name} PRIVATE -march=${level})
  target_link_libraries(mixed_link_${name} PRIVATE recycled_warnings)
  target_link_libraries(mixed_link PRIVATE mixed_link_${name})
  list(APPEND objects $<TARGET_OBJECTS:mixed_link_${name}>)
endforeach()
add_test(NAME mixed_link COMMAND mixed_link)

list(JOIN objects "|" objects)
add_test(NAME mixed_link/symbols COMMAND ${CMAKE_COMMAND}
  -D optimised=$<CONFIG:Release> -D nm=${CMAKE_NM} -D "objects=${objects}" -P ${CMAKE_CURRENT_SOURCE_DIR}/mixed_link/shared_symbols.cmake)
