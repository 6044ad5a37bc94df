// Another engine, in a process of its own that answers a line with a line: peers/README.md.
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>

namespace bench {

class Peer {
 public:
  /// Starts the program at `path`; a peer that can't be started answers nothing.
  Peer(std::string name, const std::string& path) : name_(std::move(name)) {
    std::signal(SIGPIPE, SIG_IGN);
    int to[2] = {-1, -1}, from[2] = {-1, -1};
    if (::access(path.c_str(), X_OK) != 0 || ::pipe2(to, O_CLOEXEC) != 0 || ::pipe2(from, O_CLOEXEC) != 0) {
      return;
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], 0);
    posix_spawn_file_actions_adddup2(&actions, from[1], 1);
    std::string program = path;
    char* const arguments[] = {program.data(), nullptr};
    if (::posix_spawn(&process_, program.c_str(), &actions, nullptr, arguments, environ) != 0) process_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    ::close(to[0]);
    ::close(from[1]);
    requests_ = ::fdopen(to[1], "w");
    answers_ = ::fdopen(from[0], "r");
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer() {
    if (requests_ != nullptr) std::fclose(requests_);  // the end of its input is the end of the peer
    if (answers_ != nullptr) std::fclose(answers_);
    if (process_ > 0) ::waitpid(process_, nullptr, 0);
  }

  const std::string& name() const { return name_; }
  bool running() const { return process_ > 0; }
  /// The answer to a request; nothing if the peer is gone.
  std::string ask(const std::string& request) {
    if (!running() || std::fprintf(requests_, "%s\n", request.c_str()) < 0 || std::fflush(requests_) != 0) return "";
    std::string answer;
    for (int c = std::fgetc(answers_); c != EOF && c != '\n'; c = std::fgetc(answers_)) {
      answer.push_back(static_cast<char>(c));
    }
    return answer;
  }
  /// Whether the peer can do what is asked; it is in force then.
  bool prepare(const std::string& request) { return ask(request).starts_with("ready"); }
  /// Microseconds of a step, mean of `count`; 0 if it failed.
  double microseconds(long count) {
    try {
      return std::stod(ask("run " + std::to_string(count)));
    } catch (const std::exception&) {
      return 0;
    }
  }

 private:
  std::string name_;
  pid_t process_ = -1;
  std::FILE* requests_ = nullptr;
  std::FILE* answers_ = nullptr;
};

}  // namespace bench
