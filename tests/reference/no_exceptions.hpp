// For the tests when they are built with -fno-exceptions: what has to be refused is refused in a child process, which
// the library ends after its handler got the message. Comes before the library's headers.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <string>

namespace reference {

inline int refusals = STDERR_FILENO;

/// Returns, after which the library aborts.
inline void refuse(const char* message) {
  if (::write(refusals, message, std::strlen(message)) < 0) ::_exit(1);
}

/// What the library refuses `f` with; empty if it does not, and `f` has been called.
template <class F>
std::string refusal_of(const F& f) {
  int ends[2];
  if (::pipe(ends) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    refusals = ends[1];
    f();
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string message;
  char buffer[256];
  for (ssize_t size = 0; (size = ::read(ends[0], buffer, sizeof buffer)) > 0;)
    message.append(buffer, static_cast<std::size_t>(size));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    f();
    return "";
  }
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) << "status " << status;
  return message;
}

}  // namespace reference

#define RECYCLED_ERROR_HANDLER(message) ::reference::refuse(message)
#undef EXPECT_THROW
#define EXPECT_THROW(statement, exception) EXPECT_NE(::reference::refusal_of([&] { statement; }), "")
