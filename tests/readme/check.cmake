# Every ```cpp block of README.md is a program: it compiles with the headers alone, and it runs.

file(READ ${source}/README.md text)
string(REPLACE ";" "\\;" text "${text}")  # or the semicolons would split the list of blocks
string(REGEX MATCHALL "```cpp\n[^`]*```" blocks "${text}")
list(LENGTH blocks count)
if(count EQUAL 0)
  message(FATAL_ERROR "no ```cpp block in README.md")
endif()

file(MAKE_DIRECTORY ${work})
set(number 0)
foreach(block IN LISTS blocks)
  math(EXPR number "${number} + 1")
  string(REGEX REPLACE "^```cpp\n|```$" "" block "${block}")
  file(WRITE ${work}/block${number}.cpp "${block}")
  execute_process(COMMAND ${compiler} -std=c++20 -I ${source}/include -I ${eigen_include}
    ${work}/block${number}.cpp -o ${work}/block${number} COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${work}/block${number} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
message(STATUS "${count} blocks of README.md compile and run")
