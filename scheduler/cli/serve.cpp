// saesweep serve: the scheduler alone, for workers and clients that come and go.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/files.h"
#include "core/log.h"
#include "core/thread.h"
#include "metrics/telemetry/telemetry.h"
#include "scheduler/cli/ask.h"
#include "scheduler/cli/build_info.h"
#include "scheduler/cli/interrupts.h"
#include "scheduler/cli/local_cluster.h"
#include "scheduler/cli/machine.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"
#include "scheduler/http/http_server.h"
#include "scheduler/protocol/key_files.h"
#include "scheduler/protocol/security.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr std::size_t kLongestSocketPath = 107;  // sun_path of Linux less its end

struct ServeFlags {
  std::string state = "./saesweep-data";
  std::string listen = "tcp://127.0.0.1:7077";
  std::string clients, data, artifacts, keys;
  bool insecure_loopback = false;
  std::optional<std::uint16_t> metrics_port;
};

// Where clients of this machine ask: a socket in a folder that only its owner may enter.
class ClientSocket {
 public:
  static Result<ClientSocket> make(const fs::path& state) {
    ClientSocket made;
    const fs::path folder = state / "sockets";
    if ((folder / "clients").string().size() > kLongestSocketPath) {
      SAE_TRY(SocketFolder elsewhere, SocketFolder::make());
      made.endpoint_ = elsewhere.client_endpoint();
      made.elsewhere_.emplace(std::move(elsewhere));
      return made;
    }
    SAE_TRY_VOID(make_directories(folder));
    if (::chmod(folder.c_str(), 0700) != 0)
      return fail(system_error(errno, fmt::format("make {} private", folder.string())));
    made.endpoint_ = fmt::format("ipc://{}", (folder / "clients").string());
    return made;
  }
  const std::string& endpoint() const { return endpoint_; }

 private:
  ClientSocket() = default;
  std::string endpoint_;
  std::optional<SocketFolder> elsewhere_;
};

// Host and port of "tcp://host:port"; a host that means every address becomes this machine's name.
Result<std::pair<std::string, std::uint16_t>> parts_of(const std::string& address) {
  constexpr std::string_view kScheme = "tcp://";
  const std::size_t colon = address.rfind(':');
  std::uint16_t port = 0;
  const char* end = address.data() + address.size();
  if (!address.starts_with(kScheme) || colon < kScheme.size() ||
      std::from_chars(address.data() + colon + 1, end, port).ptr != end || port == 0)
    return fail(ErrorCode::kInvalidArgument, "'{}': tcp://HOST:PORT would be right", address);
  std::string host = address.substr(kScheme.size(), colon - kScheme.size());
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  if (host == "*" || host == "0.0.0.0" || host == "::") host = host_name();
  return std::pair(host, port);
}

// Where objects travel: as it is said, or a free port at the host where workers connect.
std::string data_address_of(const ServeFlags& flags) {
  const std::size_t colon = flags.listen.rfind(':');
  if (flags.data == "off") return "";
  if (!flags.data.empty() || !flags.listen.starts_with("tcp://")) return flags.data;
  return flags.listen.substr(0, colon) + ":*";
}

// What access bundles say.
Result<protocol::Address> address_of(const ServeFlags& flags) {
  protocol::Address address;
  if (flags.listen.starts_with("tcp://")) {
    SAE_TRY(const auto workers, parts_of(flags.listen));
    address.host = workers.first;
    address.worker_port = address.client_port = workers.second;
  }
  if (flags.clients.starts_with("tcp://")) {
    SAE_TRY(const auto clients, parts_of(flags.clients));
    address.host = clients.first;
    address.client_port = clients.second;
  }
  return address;
}

// Keys of the directory that is named, or of STATE/keys, which is made when an address needs it.
Result<protocol::ServerSecurity> security_of(const ServeFlags& flags, const fs::path& state) {
  protocol::ServerSecurity open;
  open.insecure_loopback = flags.insecure_loopback;
  if (flags.insecure_loopback) {
    for (const std::string& address : {flags.listen, flags.clients, data_address_of(flags)})
      if (!address.empty())
        SAE_TRY_VOID(protocol::is_encrypted(address, false, true).map([](bool) {}));
    return open;
  }
  const auto is_tcp = [](const std::string& address) { return address.starts_with("tcp://"); };
  if (!is_tcp(flags.listen) && !is_tcp(flags.clients) && !is_tcp(flags.data)) return open;
  const fs::path directory = flags.keys.empty() ? state / "keys" : fs::absolute(flags.keys);
  std::error_code ignored;
  if (flags.keys.empty() && !fs::exists(directory, ignored)) {
    SAE_TRY(const protocol::Address address, address_of(flags));
    SAE_TRY_VOID(make_directories(state));
    SAE_TRY_VOID(protocol::init_key_directory(directory, address));
  }
  return protocol::read_server_security(directory);
}

// A connection each of worker and client, and the journal's files.
constexpr rlim_t kFewestFiles = 1280, kManyFiles = 65'536;

// Shells give 1024 and allow more.
Result<void> raise_limit_of_open_files() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t wanted = std::min(limit.rlim_max, kManyFiles);
  if (limit.rlim_cur < wanted) {
    limit.rlim_cur = wanted;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0)
      return fail(system_error(errno, "raise the limit of open files"));
  }
  if (limit.rlim_cur < kFewestFiles)
    return fail(ErrorCode::kUnavailable,
                "this process may open {} files; 1024 and 4 for each worker would be right "
                "(ulimit -n), {} at least",
                limit.rlim_cur, kFewestFiles);
  return {};
}

int serve(const ServeFlags& flags, const GlobalFlags& globals) {
  const auto complain_of = [](const Error& error) { return complain("serve", error); };
  if (auto raised = raise_limit_of_open_files(); !raised) return complain_of(raised.error());
  const fs::path state = fs::absolute(flags.state).lexically_normal();
  auto interrupts = Interrupts::take();
  if (!interrupts) return complain_of(interrupts.error());
  auto security = security_of(flags, state);
  if (!security) return complain_of(security.error());
  auto socket = ClientSocket::make(state);
  if (!socket) return complain_of(socket.error());
  metrics::Telemetry telemetry(
      {.component = "serve",
       .version = version(),
       .commit = commit(),
       .start_time_s =
           std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
               .count()});
  auto service = scheduler::SchedulerService::open(
      {.state_directory = state,
       .endpoint = flags.listen,
       .client_endpoint = socket->endpoint(),
       .remote_client_endpoint = flags.clients,
       .data_endpoint = data_address_of(flags),
       .security = *security,
       .store_directory =
           flags.artifacts.empty() ? fs::path() : fs::absolute(flags.artifacts).lexically_normal(),
       .stays = true,
       .build = build(),
       .observer = {},
       .telemetry = &telemetry});
  if (!service) return complain_of(service.error());
  std::optional<scheduler::HttpServer> metrics_page;
  if (flags.metrics_port) {
    auto server = scheduler::HttpServer::start(
        {.port = *flags.metrics_port},
        scheduler::metrics_handler([&telemetry] { return telemetry.expose(); }));
    if (!server) return complain_of(server.error());
    metrics_page.emplace(std::move(*server));
  }
  if (!globals.quiet) {
    fmt::print(stderr, "serving {}\nworkers: {}\nclients: {}\n", state.string(),
               service->endpoint(), service->client_endpoint());
    if (!service->data_endpoint().empty())
      fmt::print(stderr, "data: {}\n", service->data_endpoint());
    if (security->keys)
      fmt::print(stderr, "keys: {}; a worker elsewhere needs its worker.access\n",
                 security->directory.string());
    if (metrics_page) fmt::print(stderr, "metrics: {}/metrics\n", metrics_page->url());
  }

  Result<bool> served = false;
  std::atomic<bool> ended = false;
  int signal_number = 0;
  {
    std::jthread thread = run_thread("scheduler", [&](const std::stop_token& stop) {
      served = service->run(stop);
      ended.store(true, std::memory_order_release);
    });
    while (signal_number == 0 && !ended.load(std::memory_order_acquire))
      signal_number = interrupts->wait(milliseconds(200));
  }
  if (!served) return complain_of(served.error());
  if (!globals.quiet)
    fmt::print(stderr,
               "stopped; everything is durable, and workers go on for a while without us\n");
  return *served ? kExitDone : kExitInterrupted;
}

}  // namespace

Action add_serve(CLI::App& program, const GlobalFlags& globals) {
  CLI::App* verb =
      program.add_subcommand("serve", "Schedule sweeps for workers on any number of machines");
  const auto flags = std::make_shared<ServeFlags>();
  verb->add_option("--state", flags->state,
                   "What survives a crash; of an earlier run or serve (default ./saesweep-data)")
      ->type_name("DIR");
  verb->add_option("--listen", flags->listen,
                   "Where workers connect, and clients may (default tcp://127.0.0.1:7077)")
      ->type_name("ADDRESS");
  verb->add_option("--clients", flags->clients,
                   "Where clients of other machines ask, e.g. tcp://*:7078; those of this one have "
                   "a socket in the state directory")
      ->type_name("ADDRESS");
  verb->add_option(
          "--data-listen", flags->data,
          "Where checkpoints and results of workers travel that do not see ours (default: a "
          "free port at the host of --listen), e.g. tcp://0.0.0.0:7079; off: nowhere")
      ->type_name("ADDRESS");
  verb->add_option("--artifacts", flags->artifacts,
                   "Folder of checkpoints and results, on a file system that workers may share "
                   "(default: the state directory)")
      ->type_name("DIR");
  CLI::Option* keys =
      verb->add_option("--keys", flags->keys,
                       "Of `saesweep keys init` (default: keys in the state directory, made if "
                       "there are none)")
          ->type_name("DIR");
  verb->add_flag("--insecure-loopback", flags->insecure_loopback,
                 "No keys: only for addresses of this machine")
      ->excludes(keys);
  verb->add_option("--metrics-port", flags->metrics_port,
                   "Serve Prometheus metrics on this port of the loopback address; 0: a free one")
      ->type_name("PORT");
  verb->footer(R"(Examples:
  saesweep serve --state /data/lab
  saesweep serve --state /data/lab --listen tcp://127.0.0.1:7077 --insecure-loopback
  saesweep worker --access /data/lab/keys/worker.access      wherever that file is
  saesweep submit sweep.yaml --state /data/lab --watch

SIGTERM and Ctrl-C stop it at once: workers keep training, and a scheduler that is started again on
the same state takes them back. Exit codes: 0 every sweep is finished; 130 some are not; 3 the state
is in use, or its disk fails.
)");
  return [flags, &globals] { return serve(*flags, globals); };
}

}  // namespace saesweep::cli
