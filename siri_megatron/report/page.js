"use strict";
// Draws the figures and searches the samples. Everything of the run arrives as JSON and is set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = ({ columns, length }) => Array.from({ length }, (_, i) =>
    Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[i]])));

  const AXIS = 60, SYMBOL = 40, LETTER = 6.5; // pixels left of a legend, of an entry besides its label, and of a letter

  // The names in each legend of a figure.
  function legends(part) {
    if (part === null || typeof part !== "object") return [];
    const own = [part.color, part.shape].map((channel) => channel?.scale?.domain).filter(Array.isArray);
    return [...own, ...Object.values(part).flatMap(legends)];
  }

  // Pixels of a legend with so many columns, each as wide as its longest name.
  const legendWidth = (names, columns) => Array.from({ length: columns }, (_, column) => Math.max(0, ...names
    .filter((_, i) => i % columns === column).map((name) => SYMBOL + LETTER * String(name).length)))
    .reduce((sum, width) => sum + width, 0);

  async function draw(figure) {
    const place = document.getElementById(`plot-${figure.name}`);
    const all = legends(figure.spec), room = place.clientWidth - AXIS;
    let columns = Math.max(1, ...all.map((names) => names.length));
    while (columns > 1 && all.some((names) => legendWidth(names, columns) > room)) columns -= 1;
    const config = { ...data.config, legend: { ...data.config.legend, columns } };
    const datasets = Object.fromEntries(figure.tables.map((name) => [name, rows(data.tables[name])]));
    const spec = { ...figure.spec, datasets, description: figure.description, autosize: { type: "fit-x", contains: "padding" } };
    // ast: expressions are interpreted, so that the page's security policy need not allow eval
    await vegaEmbed(place, spec, { ast: true, renderer: "svg", actions: false, config, defaultStyle: false,
      tooltip: { disableDefaultStyle: true } });
    place.dataset.drawn = "yes";
  }

  async function drawAll() {
    for (const figure of data.figures) {
      try { await draw(figure); } catch (error) {
        document.getElementById(`plot-${figure.name}`).textContent = `This figure could not be drawn: ${error.message}`;
        console.error(figure.name, error);
      }
      await new Promise((resolve) => setTimeout(resolve, 0)); // let the page answer in between
    }
    document.documentElement.dataset.drawn = "yes";
  }

  const element = (tag, name, ...children) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...children);
    return made;
  };

  function marked(text, query) {
    if (!query) return [text];
    const parts = [], low = text.toLowerCase();
    let from = 0;
    for (let at = low.indexOf(query); at >= 0 && low.length === text.length; at = low.indexOf(query, from)) {
      parts.push(text.slice(from, at), element("mark", "", text.slice(at, at + query.length)));
      from = at + query.length;
    }
    return [...parts, text.slice(from)];
  }

  const signs = { right: "✓ right", wrong: "✗ wrong", partial: "◐ partly right", failed: "? no verdict" };

  function answerCard(answer, query) {
    const known = Object.hasOwn(signs, answer.outcome);
    const about = element("div", "about", element("span", "", answer.label),
      element("span", `outcome ${known ? answer.outcome : ""}`, known ? signs[answer.outcome] : answer.outcome),
      element("span", "", `${answer.tokens} tokens`));
    return element("div", "answer", about, element("div", "body", ...marked(answer.response, query)));
  }

  function sampleCard(sample, query) {
    const about = [sample.source, sample.tier && `tier ${sample.tier}`, `reference answer ${sample.reference}`];
    return element("article", "sample", element("div", "about", about.filter(Boolean).join(" · ")),
      element("div", "body", ...marked(sample.prompt, query)),
      element("div", "answers", ...sample.answers.map((answer) => answerCard(answer, query))));
  }

  function search() {
    const query = document.getElementById("query").value.trim().toLowerCase();
    const outcome = document.getElementById("outcome").value;
    const fits = (sample) => (!outcome || sample.answers.some((answer) => answer.outcome === outcome)) &&
      (!query || sample.text.includes(query));
    const found = data.samples.filter(fits);
    document.getElementById("samples-found").replaceChildren(...found.map((sample) => sampleCard(sample, query)));
    document.getElementById("count").textContent = `${found.length} of ${data.samples.length} prompts`;
  }

  if (data.samples.length) {
    for (const sample of data.samples) {
      sample.text = [sample.prompt, sample.reference, sample.source, sample.tier,
        ...sample.answers.flatMap((answer) => [answer.label, answer.response])].join("\n").toLowerCase();
    }
    document.getElementById("query").addEventListener("input", search);
    document.getElementById("outcome").addEventListener("change", search);
    search();
  }
  drawAll();
})();
