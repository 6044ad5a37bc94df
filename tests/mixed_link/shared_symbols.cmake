# No symbol of the library, and in optimised builds none of Eigen, is defined in two of `objects` (separated by |): the linker keeps one definition of each, and a
# program would run the code of another instruction set.

cmake_minimum_required(VERSION 3.22)

string(REPLACE "|" ";" objects "${objects}")
set(seen)
foreach(object IN LISTS objects)
  execute_process(COMMAND ${nm} --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL " [WVuTDBR] [^\n]*8recycled[^\n]*" own "${symbols}")  # mangled: the name and its length
  if(optimised)
    string(REGEX MATCHALL " [WVuTDBR] _ZNK?5Eigen[^\n]*" eigen "${symbols}")
    list(APPEND own ${eigen})
  endif()
  list(LENGTH own count)
  if(count EQUAL 0)
    message(FATAL_ERROR "${object} defines no symbol of the library: nothing was compared")
  endif()
  foreach(symbol IN LISTS own)
    if(symbol IN_LIST seen)
      message(FATAL_ERROR "${object} shares${symbol} with another object")
    endif()
  endforeach()
  list(APPEND seen ${own})
  message(STATUS "${count} symbols of the library in ${object}")
endforeach()
