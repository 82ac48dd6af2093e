// The report page in a real browser, without a network: that it draws, and that what can be clicked
// does what it says. Skipped where there is no Chromium (deploy/setup.sh --with-dev installs one).
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>

#include "core/files.h"
#include "scheduler/leaderboard/report_page.h"
#include "tests/e2e/program.h"
#include "tests/scheduler/leaderboard/example_board.h"
#include "tests/support/temp_dir.h"

namespace saesweep::scheduler {
namespace {

using testing::Each;
using testing::Gt;
using testing::IsEmpty;
using testing::SizeIs;

std::optional<std::filesystem::path> find_browser() {
  std::istringstream folders(std::getenv("PATH") == nullptr ? "" : std::getenv("PATH"));
  for (std::string folder; std::getline(folders, folder, ':');)
    for (const char* name : {"chromium", "chromium-browser", "google-chrome"})
      if (const auto path = std::filesystem::path(folder) / name; ::access(path.c_str(), X_OK) == 0)
        return path;
  return std::nullopt;
}

// Before anything of the page runs: everything that goes wrong is kept.
constexpr std::string_view kListen = R"(<script>
window.problems = [];
addEventListener("error", (event) => problems.push(`error: ${event.message}`));
addEventListener("unhandledrejection", (event) => problems.push(`rejection: ${event.reason}`));
addEventListener("securitypolicyviolation", (event) => problems.push(`blocked: ${event.blockedURI}`));
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(`${kind}: ${words.join(" ")}`);
</script>)";

// After everything of it has run: clicks, looks, and tells the page around it.
constexpr std::string_view kProbe = R"(<script type="module">
// Nothing is animated: what a click draws is there when its handlers are through. Timers run on the
// browser's virtual clock, which a busy machine does not hurry.
const frame = () => new Promise((done) => setTimeout(done, 100));
const canvases = (where) => [...document.querySelectorAll(`${where} canvas`)];
const charts = () => canvases("#scatters").map((canvas) => Chart.getChart(canvas));
const points = () => charts().map((chart) =>
  chart.data.datasets.filter((set) => set.points).reduce((sum, set) => sum + set.data.length, 0));
// Different colours on a canvas: one is an empty canvas.
const colours = (canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
};
const inside = (chart, point) => point.x >= chart.chartArea.left && point.x <= chart.chartArea.right &&
  point.y >= chart.chartArea.top && point.y <= chart.chartArea.bottom;
await frame();
const said = { headings: [...document.querySelectorAll("#scatters h2")].map((h) => h.textContent) };
said.points = points();
said.colours = canvases("#scatters").map(colours);
said.front = charts().map((chart) => chart.data.datasets.find((set) => set.label === "front").data.length);
said.baselines = charts().map((chart) => chart.options.plugins.baselineLines.baselines.length);
said.outside = charts().map((chart) => chart.data.datasets.reduce((sum, set, i) =>
  sum + (set.points ? chart.getDatasetMeta(i).data.filter((point) => !inside(chart, point)).length : 0), 0));
said.curves = canvases("#curves-card").map(colours);
said.densities = canvases("#densities").map(colours);
const looks = () => Chart.getChart("curves").data.datasets.filter((set) => set.heldOut).length;
said.heldOut = [looks()];
for (let i = 0; i < 2; ++i) {
  document.getElementById("curve-held-out").click();
  said.heldOut.push(looks());
}
said.tooWide = document.documentElement.scrollWidth - document.documentElement.clientWidth;

const chip = () => document.querySelector("#legend .chip");
said.chips = document.querySelectorAll("#legend .chip").length;
chip().click();
await frame();
said.hidden = { points: points(), pressed: chip().getAttribute("aria-pressed") };
chip().click();
await frame();
said.shown = { points: points(), pressed: chip().getAttribute("aria-pressed") };

const theme = document.documentElement.dataset.theme;
document.getElementById("theme").click();
await frame();
said.themes = new Set([theme, document.documentElement.dataset.theme]).size;
said.colours_then = canvases("#scatters").map(colours);

// Where the mouse is over a trial, its name and numbers appear.
const chart = charts()[0];
const at = chart.getDatasetMeta(0).data[0];
const box = chart.canvas.getBoundingClientRect();
chart.canvas.dispatchEvent(new MouseEvent("mousemove",
  { clientX: box.left + at.x, clientY: box.top + at.y, bubbles: true }));
// The library looks at the mouse once a frame, and frames are not on the virtual clock.
for (let i = 0; i < 100 && !chart.tooltip?.title?.length; ++i) await frame();
said.tooltip = [chart.tooltip?.title ?? [], (chart.tooltip?.body ?? []).flatMap((part) => part.lines)].flat();
said.problems = problems;
parent.postMessage(JSON.stringify(said), "*");
</script>)";

// The page as a window of `width` shows it; what kProbe says.
Json look_at(const std::string& page, int width) {
  const test::TempDir directory;
  const auto write = [&](const char* name, const std::string& text) {
    EXPECT_TRUE(write_file_atomically(directory.path() / name, text));
  };
  std::string probed = page;
  probed.insert(probed.find("<head>") + 6, kListen);
  probed.insert(probed.rfind("</body>"), kProbe);
  write("report.html", probed);
  write("window.html", fmt::format(R"(<!doctype html><meta charset="utf-8"><pre id="said"></pre>
<iframe src="report.html" width="{}" height="2400"></iframe><script>
addEventListener("message", (event) => {{ document.getElementById("said").textContent = encodeURIComponent(event.data); }});
</script>)",
                                   width));
  test::Program browser(
      {find_browser()->string(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
       "--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage",
       "--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND",
       "--user-data-dir=" + (directory.path() / "profile").string(), "--window-size=1400,2600",
       "--virtual-time-budget=20000", "--dump-dom",
       "file://" + (directory.path() / "window.html").string()},
      directory.path());
  const auto finished = browser.wait();
  const std::string& dom = finished.out;
  constexpr std::string_view kOpens = "<pre id=\"said\">";
  const std::size_t opens = dom.find(kOpens);
  if (opens == std::string::npos) {
    ADD_FAILURE() << "no answer, exit " << finished.exit_code << ": " << finished.err;
    return Json::object();
  }
  std::string text;
  for (std::size_t i = opens + kOpens.size(); dom[i] != '<'; ++i) {
    if (dom[i] == '%') {
      text += static_cast<char>(std::stoi(dom.substr(i + 1, 2), nullptr, 16));
      i += 2;
    } else {
      text += dom[i];
    }
  }
  const auto said = parse_json(text);
  EXPECT_TRUE(said) << "the probe did not come to its end: " << text << finished.err;
  return said.value_or(Json::object());
}

class ReportInABrowser : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (!find_browser()) GTEST_SKIP() << "no chromium on PATH";
  }
};

TEST_P(ReportInABrowser, DrawsItsChartsAndAnswersClicks) {
  const Leaderboard board = test::example_board();
  const Json said = look_at(report_page(board), GetParam());
  ASSERT_FALSE(said.empty());
  EXPECT_THAT(said["problems"].get<std::vector<std::string>>(), IsEmpty());
  EXPECT_LE(said["tooWide"], 0) << "it must be scrolled sideways";

  const auto numbers = [](const Json& value) { return value.get<std::vector<int>>(); };
  ASSERT_GE(said["points"].size(), 2u) << "loss recovered, coverage: " << said["headings"];
  EXPECT_THAT(numbers(said["points"]), Each(Gt(0)));
  EXPECT_THAT(numbers(said["outside"]), Each(0)) << "points beyond the axes";
  EXPECT_THAT(numbers(said["front"]), Each(Gt(1)));
  EXPECT_THAT(numbers(said["baselines"]), Each(Gt(0)));
  for (const char* part : {"colours", "colours_then", "curves", "densities"}) {
    EXPECT_THAT(numbers(said[part]), testing::Not(IsEmpty())) << part;
    EXPECT_THAT(numbers(said[part]), Each(Gt(8))) << part << ": an empty canvas has one colour";
  }

  const std::vector<int> looks = numbers(said["heldOut"]);
  EXPECT_GT(looks.at(0), 10) << "a line of held-out rows beside each of training";
  EXPECT_THAT(looks, testing::ElementsAre(looks[0], 0, looks[0])) << "the box takes them away";

  EXPECT_GE(said["chips"], 2);
  EXPECT_EQ(said["hidden"]["pressed"], "false");
  for (std::size_t i = 0; i < said["points"].size(); ++i)
    EXPECT_LT(said["hidden"]["points"][i], said["points"][i]);
  EXPECT_EQ(said["shown"]["pressed"], "true");
  EXPECT_EQ(said["shown"]["points"], said["points"]);
  EXPECT_EQ(said["themes"], 2) << "the button changes the colours";
  // The narrow window stands for a telephone, which has no mouse.
  if (GetParam() > 1000) {
    EXPECT_THAT(said["tooltip"], SizeIs(Gt(2u))) << said["tooltip"];
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, ReportInABrowser, testing::Values(1280, 400));

}  // namespace
}  // namespace saesweep::scheduler
