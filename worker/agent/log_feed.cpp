#include "worker/agent/log_feed.h"

#include <fmt/format.h>

#include <fstream>
#include <memory>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/log.h"

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr Duration kEvery = 1s;
constexpr std::size_t kPieceBytes = std::size_t{64} << 10;

// In front of the name of a log that does not grow any more.
constexpr std::string_view kWhole = "whole ";

std::string name_of(std::uint64_t run) { return fmt::format("run-{}.log", run); }

// What is there from `offset` on, one piece of it.
std::string read_piece(const fs::path& file, std::uint64_t offset) {
  std::ifstream in(file, std::ios::binary);
  std::string piece(kPieceBytes, '\0');
  in.seekg(static_cast<std::streamoff>(offset));
  in.read(piece.data(), static_cast<std::streamsize>(piece.size()));
  piece.resize(in.bad() ? 0 : static_cast<std::size_t>(in.gcount()));
  return piece;
}

}  // namespace

void LogFeed::travel(const fs::path& directory, const protocol::ClientSecurity& security,
                     protocol::DataClient::Patience patience) {
  directory_ = directory;
  // Of the courier's thread: how much of each log is over there.
  const auto sent = std::make_shared<std::map<std::string, std::uint64_t>>();
  courier_.emplace("data logs", security, patience,
                   [directory, sent](protocol::DataClient& client, const std::string& object,
                                     const std::stop_token& stop) -> Result<void> {
                     const bool is_whole = object.starts_with(kWhole);
                     const std::string name = is_whole ? object.substr(kWhole.size()) : object;
                     std::uint64_t& offset = (*sent)[name];
                     while (true) {
                       std::string piece = read_piece(directory / name, offset);
                       if (piece.empty()) {
                         if (is_whole) sent->erase(name);
                         return {};
                       }
                       const std::size_t size = piece.size();
                       protocol::DataRequest request;
                       request.mutable_log()->set_name(name);
                       request.mutable_log()->set_offset(offset);
                       request.mutable_log()->set_data(std::move(piece));
                       SAE_TRY_VOID(client.ask(std::move(request), stop));
                       offset += size;
                     }
                   });
}

void LogFeed::go_to(const std::string& data_endpoint) {
  if (courier_) courier_->go_to(data_endpoint);
}

void LogFeed::follow(std::uint64_t run) {
  if (courier_) runs_[run] = false;
}
void LogFeed::end(std::uint64_t run) {
  if (const auto found = runs_.find(run); found != runs_.end()) found->second = true;
}

int LogFeed::signal() const { return courier_ ? courier_->signal() : -1; }

void LogFeed::step() {
  if (!courier_) return;
  const TimePoint now = clock_.now();
  if (const auto done = courier_->delivered()) {
    if (done->outcome) {
      std::error_code ignored;
      for (const std::uint64_t run : last_) {
        fs::remove(directory_ / name_of(run), ignored);
        runs_.erase(run);
      }
    } else {
      log::debug("logs.not_sent error={}", done->outcome.error().message);
    }
    next_ = now + kEvery;
  }
  if (!courier_->is_idle() || runs_.empty() || now < next_) return;
  std::vector<std::string> names;
  last_.clear();
  for (const auto& [run, has_ended] : runs_) {
    names.push_back(has_ended ? std::string(kWhole) + name_of(run) : name_of(run));
    if (has_ended) last_.push_back(run);
  }
  courier_->carry(1, std::move(names));
}

}  // namespace saesweep::agent
