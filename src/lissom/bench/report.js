// Replaces the still picture of each chart by a live one; when anything fails, the picture stays.
const { charts } = JSON.parse(document.getElementById("report-data").textContent);
for (const [name, spec] of Object.entries(charts)) {
  const place = document.getElementById(`chart-${name}`);
  const live = document.createElement("div");
  live.className = "live";
  place.append(live);
  vegaEmbed(live, spec, {
    mode: "vega-lite",
    renderer: "svg",
    ast: true, // no `new Function`: the content security policy forbids it
    actions: false,
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
    loader: { http: false, target: null },
  }).then(
    () => place.querySelector(".still").remove(),
    () => live.remove(),
  );
}
