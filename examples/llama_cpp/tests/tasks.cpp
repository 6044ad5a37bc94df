// What is found in a long text under each policy: tasks that tasks.py wrote. An answer is found if each of its tokens
// is the likeliest, given the question and the right answers before it; so a small model is not lost at its first
// mistake.
//
// usage: tasks MODEL PLUGIN FOLDER [--policies LIST] [--capacity K] [--threads N] [--json FILE]
// A policy is a schedule of the plugin, and may have a capacity of its own behind an @.
#include <cstdio>
#include <filesystem>
#include <numeric>

#include "../../output_file.hpp"
#include "arguments.hpp"
#include "progress.hpp"
#include "reading.hpp"

namespace {

using namespace host;

struct Answer {
  std::string lead, text;  ///< what comes before it
};
struct Question {
  std::string text;  ///< with the beginning of the answer
  bool in_order = true;
  std::vector<Answer> answers;
};
struct Task {
  std::string name, text;
  std::vector<Question> questions;
};

/// NAME_NN.txt: see tasks.py.
Task read_task(const std::filesystem::path& path) {
  std::istringstream file(contents_of(path.string()));
  const std::string stem = path.stem().string(), dashes = "---- ", arrow = "=> ";
  Task task{.name = stem.substr(0, stem.rfind('_')), .text = {}, .questions = {}};
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(dashes)) {
      task.questions.push_back({{}, line.substr(dashes.size()) == "in order", {}});
    } else if (line.starts_with(arrow) && !task.questions.empty()) {
      const std::size_t bar = line.find('|');
      if (bar == std::string::npos) throw std::runtime_error(path.string() + ": " + line + ", expected LEAD|ANSWER");
      task.questions.back().answers.push_back({line.substr(arrow.size(), bar - arrow.size()), line.substr(bar + 1)});
    } else {
      std::string& text = task.questions.empty() ? task.text : task.questions.back().text;
      text += (text.empty() ? "" : "\n") + line;
    }
  }
  const auto no_answers = [](const Question& question) { return question.answers.empty(); };
  if (task.questions.empty() || std::any_of(task.questions.begin(), task.questions.end(), no_answers))
    throw std::runtime_error(path.string() + ", expected questions with answers behind a text");
  return task;
}

std::vector<Task> read_tasks(const std::string& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".txt") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::vector<Task> tasks;
  std::transform(files.begin(), files.end(), std::back_inserter(tasks), read_task);
  return tasks;
}

/// A model that is asked: what it has read, and what it takes for the likeliest token.
class Reader {
 public:
  /// Starts behind `position` tokens, with one that is read by itself, as all that follow.
  Reader(llama_context* context, int position, llama_token token) : context_(context), position_(position) {
    read(token);
  }
  void read(llama_token token) {
    const std::vector<float> logits = decode(context_, {{token, position_++}}, 1).front();
    likeliest_ = static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  void read(const Tokens& tokens) {
    for (const llama_token token : tokens) read(token);
  }
  llama_token likeliest() const { return likeliest_; }

 private:
  llama_context* context_;
  int position_;
  llama_token likeliest_ = 0;
};

/// Reads the one of the answers that the model says, token by token, or the first if it says none of them. True if it
/// says one; `which` is what was read.
bool say_one_of(const std::vector<Tokens>& answers, Reader& reader, std::size_t& which) {
  std::vector<std::size_t> agree(answers.size());
  std::iota(agree.begin(), agree.end(), 0);
  bool right = true;
  for (std::size_t i = 0; i < answers[agree.front()].size(); ++i) {
    std::vector<std::size_t> still;
    for (const std::size_t one : agree) {
      if (i < answers[one].size() && answers[one][i] == reader.likeliest()) still.push_back(one);
    }
    right = right && !still.empty();
    agree = still.empty() ? std::vector<std::size_t>(1, agree.front()) : still;
    reader.read(answers[agree.front()][i]);
  }
  which = agree.front();
  return right;
}

/// The share of the answers that are found.
double score(const llama_model* model, const Question& question, Reader& reader) {
  int found = 0;
  std::vector<Tokens> left;
  for (const Answer& answer : question.answers) left.push_back(tokenize(model, answer.text, false));
  for (const Answer& answer : question.answers) {
    reader.read(tokenize(model, answer.lead, false));
    std::size_t which = 0;
    found += say_one_of(question.in_order ? std::vector<Tokens>(1, left.front()) : left, reader, which) ? 1 : 0;
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(which));
  }
  return static_cast<double>(found) / static_cast<double>(question.answers.size());
}

/// Sums over samples: [task][policy].
using Scores = std::map<std::string, std::map<std::string, double>>;

void print(const Scores& scores, const Words& policies, const std::map<std::string, int>& samples) {
  std::printf("\n%-32s", "policy");
  for (const auto& [task, unused] : scores) std::printf(" %13s", task.c_str());
  std::printf(" %13s\n", "mean");
  for (const std::string& policy : policies) {
    std::printf("%-32s", policy.c_str());
    double sum = 0;
    for (const auto& [task, of] : scores) {
      const double score = of.at(policy) / samples.at(task);
      sum += score / static_cast<double>(scores.size());
      std::printf(" %13.2f", score);
    }
    std::printf(" %13.2f\n", sum);
  }
}

void write(const examples::OutputFile& file, const std::string& model, const Scores& scores,
           const std::map<std::string, int>& samples) {
  file.write([&](std::ostream& json) {
    const char* separator = "[";
    for (const auto& [task, of] : scores) {
      for (const auto& [policy, sum] : of) {
        json << separator << "{\"model\": \"" << model << "\", \"task\": \"" << task << "\", \"policy\": \"" << policy
             << "\", \"samples\": " << samples.at(task) << ", \"score\": " << sum / samples.at(task)
             << ", \"full_score\": " << of.at("full") / samples.at(task) << "}";
        separator = ",\n ";
      }
    }
    json << "]\n";
  });
}

void run(const Words& words, Options& options) {
  const int threads = number("--threads", options["--threads"], 1);
  const std::vector<Task> tasks = read_tasks(words[2]);
  const examples::OutputFile json(options["--json"]);
  const Model model = load_model(words[0]);
  Plugin plugin(words[1]);
  plugin.turn(true);
  plugin.set("from", "0");
  Words policies = split(options["--policies"]);
  policies.insert(policies.begin(), "full");
  Scores scores;
  std::map<std::string, int> samples;
  std::size_t questions = 0;
  for (const Task& task : tasks) questions += task.questions.size();
  Progress progress(questions * policies.size());
  for (const Task& task : tasks) {
    const Tokens text = tokenize(model.get(), task.text + "\n\n");
    const int length = static_cast<int>(text.size());
    const Context context =
        make_context(model.get(), {.positions = static_cast<unsigned>(length + 512), .threads = threads});
    plugin.set("schedule", "exact");
    read_prompt(context.get(), text, 0, length);
    for (const Question& question : task.questions) {
      Tokens asked = text;
      const Tokens end = tokenize(model.get(), question.text, false);
      asked.insert(asked.end(), end.begin(), end.end());
      const int last = static_cast<int>(asked.size()) - 1;  // the first token that is decoded by itself
      ++samples[task.name];
      for (const std::string& policy : policies) {
        rewind(context.get(), length);
        set_policy(plugin, policy == "full" ? "exact" : policy, options["--capacity"]);
        read_prompt(context.get(), asked, length, last);
        Reader reader(context.get(), last, asked.back());
        const double one = score(model.get(), question, reader);
        scores[task.name][policy] += one;
        progress.clear();
        std::printf("%-14s %6d %-32s %.2f\n", task.name.c_str(), last, policy.c_str(), one);
        std::fflush(stdout);
        progress.advance();
      }
    }
  }
  progress.clear();
  print(scores, policies, samples);
  write(json, std::filesystem::path(words[0]).filename().string(), scores, samples);
}

}  // namespace

int main(int argc, char** argv) {
  return program(argc, argv, "tasks MODEL PLUGIN FOLDER [--policies LIST] [--capacity K] [--threads N] [--json FILE]",
                 3,
                 {{"--policies", "snapkv,h2o,fixed-stride:10,self-calibrating"},
                  {"--capacity", "1/8"},
                  {"--threads", "2"},
                  {"--json", ""}},
                 run);
}
