# Builds and runs this folder's project in one way: installed, subdirectory or headers. Called by ctest.

cmake_minimum_required(VERSION 3.22)

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(consumer ${source}/tests/consumer)
file(REMOVE_RECURSE ${work})
file(MAKE_DIRECTORY ${work})

if(way STREQUAL "headers")
  run(${compiler} -std=c++20 -I ${source}/include -I ${eigen_include} ${consumer}/main.cpp -o ${work}/consumer)
  run(${work}/consumer)
  return()
endif()

if(way STREQUAL "installed")
  run(${CMAKE_COMMAND} --install ${build} --prefix ${work}/prefix)
  file(READ ${work}/prefix/share/cmake/recycled/recycledTargets.cmake exported)
  if(exported MATCHES "INTERFACE_COMPILE_(OPTIONS|DEFINITIONS)|INTERFACE_LINK_OPTIONS|-Wall|-march")
    message(FATAL_ERROR "The package forces ${CMAKE_MATCH_0} on its users")
  endif()
  set(where -D CMAKE_PREFIX_PATH=${work}/prefix)
else()
  set(where -D RECYCLED_SOURCE=${source})
endif()

run(${CMAKE_COMMAND} -S ${consumer} -B ${work}/build -G ${generator} ${where}
  -D CMAKE_CXX_COMPILER=${compiler} -D CMAKE_BUILD_TYPE=Release -D Eigen3_DIR=${eigen_dir})
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/consumer)
