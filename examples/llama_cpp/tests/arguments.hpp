// What the programs here are called with: words, and options with a value each.
#pragma once

#include <charconv>
#include <cstdio>
#include <exception>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace host {

using Words = std::vector<std::string>;
using Options = std::map<std::string, std::string>;

/// The parts of a list with commas.
inline Words split(const std::string& list) {
  Words parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

/// A value of an option.
inline int number(const std::string& option, const std::string& text, int least) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < least)
    throw std::runtime_error(option + " = " + text + ", expected a whole number of at least " + std::to_string(least));
  return value;
}

/// A program: `run` gets at least so many words, and `options` with what the caller gave of them.
template <class Run>
int program(int argc, char** argv, const char* usage, std::size_t least_words, Options options, const Run& run) {
  Words words;
  bool sound = true;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (!argument.starts_with("--")) {
      words.push_back(argument);
    } else if (options.contains(argument) && i + 1 < argc) {
      options[argument] = argv[++i];
    } else {
      sound = false;
    }
  }
  if (!sound || words.size() < least_words) {
    std::fprintf(stderr, "usage: %s\n", usage);
    return 2;
  }
  try {
    run(words, options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}

}  // namespace host
