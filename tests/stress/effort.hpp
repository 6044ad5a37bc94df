// How long the tests in this folder go on, and what they have to say at the end.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

namespace stress {

/// `cases` if nothing was said: some seconds' worth. RECYCLED_EFFORT in the environment multiplies them.
inline long effort(long cases) {
  const char* const times = std::getenv("RECYCLED_EFFORT");
  return cases * (times == nullptr ? 1 : std::max(1L, std::atol(times)));
}

/// The seed that a run begins with: the same one unless RECYCLED_SEED says otherwise.
inline unsigned long seed() {
  const char* const given = std::getenv("RECYCLED_SEED");
  return given == nullptr ? 1 : std::strtoul(given, nullptr, 10);
}

/// A line of the summary: printed, and appended to the file RECYCLED_SUMMARY if there is one.
inline void report(const std::string& what, const std::string& figure) {
  std::printf("%-50s %s\n", what.c_str(), figure.c_str());
  if (const char* const path = std::getenv("RECYCLED_SUMMARY")) {
    std::ofstream(path, std::ios::app) << what << '\t' << figure << '\n';
  }
}

}  // namespace stress
