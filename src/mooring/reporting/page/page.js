"use strict";
// Moves λ, filters and searches. Texts of models and prompts go into the page as text nodes alone, never as markup.
(() => {
  const PAGE = 50;
  const byId = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const fill = (parent, ...children) => {
    parent.replaceChildren(...children);
    return parent;
  };

  const data = JSON.parse(byId("data").textContent);
  const last = data.lams.length - 1;
  const rows = data.rows.map(([id, measure, split, category, text, answers], place) => ({
    place, id, split, category, text,
    set: measure,
    measure: data.measures[measure],
    answers: new Map(answers.map(([lam, said, verdict, good, words = [], thought = null]) => [lam, { said, verdict, good, words, thought }])),
  }));
  const state = { at: data.chosen, attack: 0, kind: "all", split: "0", set: "", words: "", most: PAGE, open: new Set() };

  // A text is whole, or [number of an earlier text, how much of it, what follows].
  const known = new Map();
  const textOf = (number) => {
    if (!known.has(number)) {
      const kept = data.texts[number];
      known.set(number, typeof kept === "string" ? kept : textOf(kept[0]).slice(0, kept[1]) + kept[2]);
    }
    return known.get(number);
  };

  const good = (row, lam) => (row.answers.has(lam) ? row.answers.get(lam).good : null);
  const said = (row, lam) => (row.answers.has(lam) ? row.answers.get(lam).verdict : "");
  const disagree = (row, lam) => {
    const words = row.answers.has(lam) ? row.answers.get(lam).words : [];
    return new Set(words.filter((word) => word && word !== "unreadable" && word !== "unsure")).size > 1;
  };
  const KINDS = {
    all: () => true,
    unsafe: (row, at) => row.measure.kind === "refuse" && good(row, 0) === 1 && good(row, at) === 0,
    again: (row, at) => row.measure.kind === "refuse" && good(row, last) === 0 && good(row, at) === 1,
    refused: (row, at) => row.measure.kind === "answer" && said(row, at) === "refused",
    disagree,
  };
  // Of which prompts a filter can find any: a dash says that there are none in this split.
  const COULD = {
    all: () => true,
    unsafe: (row) => row.measure.kind === "refuse",
    again: (row) => row.measure.kind === "refuse",
    refused: (row) => row.measure.kind === "answer",
    disagree: (row) => [...row.answers.values()].some((answer) => answer.words.length > 1),
  };

  const hay = (row) => {
    if (row.hay === undefined) {
      const texts = [row.text, ...[...row.answers.values()].flatMap(({ said, thought }) => (thought === null ? [said] : [said, thought]))];
      row.hay = [row.id, row.category, ...[...new Set(texts)].map(textOf)].join("\n").toLowerCase();
    }
    return row.hay;
  };
  const inScope = (row) =>
    (state.split === "" || row.split === Number(state.split)) &&
    (state.set === "" || row.measure.set === state.set) &&
    row.measure.attack === state.attack &&
    (state.words === "" || hay(row).includes(state.words));

  // --- numbers, figures, bars ---------------------------------------------------------------------------------------

  const tiles = () => {
    const shownHere = data.scores.filter((score) => score.attack === null || score.attack === state.attack);
    fill(byId("tiles"), ...shownHere.map((score) => {
      const tile = make("div", score.main ? "main" : "");
      const splits = ["validation", "test"].filter((split) => score[split]);
      const at = splits.filter((split) => score[split][state.at]);
      const shown = at[0] || splits[0];
      const [value, interval] = score[shown][state.at] || ["not measured here", ""];
      tile.append(make("dt", "", `${score.name} ${score.arrow}`), make("dd", at.length ? "value" : "none", value));
      tile.append(make("dd", "", at.length ? `${interval} ${shown}`.trim() : ""));
      const ends = [["base", 0], ["tuned", last]].filter(([, lam]) => score[shown][lam]);
      tile.append(make("dd", "", ends.map(([name, lam]) => `${name} ${score[shown][lam][0]}`).join(", ")));
      if (at.length > 1) tile.append(make("dd", "", `test: ${score.test[state.at].join(" ").trim()}`));
      return tile;
    }));
  };

  const cursors = () => {
    for (const [name, places] of Object.entries(data.cursors)) {
      const svg = document.querySelector(`#figure-${name} svg`);
      if (!svg) continue;
      svg.querySelectorAll(".cursor").forEach((old) => old.remove());
      for (const [x, y] of places[state.at]) {
        const circle = document.createElementNS(svg.namespaceURI, "circle");
        const look = { cx: x, cy: y, r: 11, class: "cursor" };
        for (const [key, value] of Object.entries(look)) circle.setAttribute(key, value);
        svg.append(circle);
      }
    }
  };

  const bars = () => {
    const groups = new Map();
    for (const row of rows) {
      const key = `${row.set}\n${row.category}`;
      if (!row.category || !inScope(row)) continue;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(row);
    }
    const order = [...groups.keys()].sort((a, b) => parseInt(a, 10) - parseInt(b, 10) || (a < b ? -1 : 1));
    const lines = order.map((key) => groups.get(key)).map((members) => {
      const share = (lam) => {
        const marks = members.map((row) => good(row, lam)).filter((mark) => mark !== null);
        const wanted = members[0].measure.kind === "task" ? 1 : 0;
        return [marks.filter((mark) => mark === wanted).length, marks.length];
      };
      const line = make("div", "line");
      line.append(make("span", "what", `${members[0].category} · ${members[0].measure.name}`));
      const track = make("span", "track");
      for (const [name, lam] of [["here", state.at], ["tick base", 0], ["tick tuned", last]]) {
        const [count, total] = share(lam);
        if (!total) continue;
        const mark = make("span", name);
        mark.style[name === "here" ? "width" : "left"] = `${(100 * count) / total}%`;
        track.append(mark);
      }
      const [count, total] = share(state.at);
      line.append(track, make("span", "count", total ? `${count} / ${total}` : "not asked"));
      return line;
    });
    byId("bars-box").hidden = lines.length === 0;
    fill(byId("bars"), ...lines);
  };

  // --- prompts ------------------------------------------------------------------------------------------------------

  const SIGNS = new Map([[1, ["✓", "good"]], [0, ["✗", "bad"]], [null, ["?", "dim"]]]);
  const mark = (answer) => {
    const [sign, name] = SIGNS.get(answer.good);
    return make("span", name, `${sign} ${answer.verdict}`);
  };

  const strip = (row) => {
    const line = make("span", "strip");
    data.lams.forEach((name, lam) => {
      const answer = row.answers.get(lam);
      const [sign, look] = answer ? SIGNS.get(answer.good) : ["·", "dim"];
      const cell = make("span", `${look}${lam === state.at ? " at" : ""}`, sign);
      cell.title = `${name}: ${answer ? answer.verdict : "not asked"}`;
      line.append(cell);
    });
    return line;
  };

  const answerBox = (row, lam, heading) => {
    const box = make("div", "answer");
    const head = make("h4", "", `${heading}: `);
    box.append(head);
    const answer = row.answers.get(lam);
    if (!answer) {
      head.textContent = heading;
      box.append(make("p", "dim", "Not asked at this λ: not every model is asked every prompt."));
      return box;
    }
    head.append(mark(answer));
    const words = answer.words.map((word, judge) => word && `${data.judges[judge]}: ${word}`).filter(Boolean);
    if (words.length) box.append(make("p", "dim", words.join(" · ")));
    if (answer.thought !== null) {
      const thoughts = make("details", "thoughts");
      const inside = make("pre", "dim", textOf(answer.thought));
      inside.dir = "auto";
      thoughts.append(make("summary", "dim", "thoughts"), inside);
      box.append(thoughts);
    }
    const text = make("pre");
    text.dir = "auto";
    const whole = textOf(answer.said);
    const first = lam !== 0 && row.answers.has(0) ? textOf(row.answers.get(0).said) : "";
    let alike = 0;
    while (alike < whole.length && whole[alike] === first[alike]) alike += 1;
    alike = alike === whole.length ? alike : whole.lastIndexOf(" ", alike) + 1;
    if (alike > 0) text.append(make("span", "alike", whole.slice(0, alike)));
    text.append(whole.slice(alike));
    box.append(text);
    return box;
  };

  const body = (row) => {
    if (data.redacted && row.measure.harmful) {
      return [make("p", "dim", "The prompt and the answers were left out of this report.")];
    }
    const prompt = make("pre", "", textOf(row.text));
    prompt.dir = "auto";
    const three = make("div", "three");
    three.append(answerBox(row, 0, "base"));
    if (state.at !== 0 && state.at !== last) three.append(answerBox(row, state.at, data.lams[state.at]));
    three.append(answerBox(row, last, "tuned"));
    if (row.answers.has(last + 1)) three.append(answerBox(row, last + 1, data.taken));
    return [make("h4", "", "prompt"), prompt, three];
  };

  const line = (row) => {
    const box = make("details", "prompt");
    const summary = make("summary");
    summary.append(strip(row), make("span", "id", row.id));
    if (row.category) summary.append(make("span", "dim", row.category));
    if (row.measure.harmful) summary.append(make("span", "bad", "harmful request"));
    else summary.append(make("span", "start", textOf(row.text).slice(0, 120)));
    box.append(summary);
    const inside = make("div", "inside");
    box.append(inside);
    box.open = state.open.has(row.place);
    if (box.open) fill(inside, ...body(row));
    box.addEventListener("toggle", () => {
      state.open[box.open ? "add" : "delete"](row.place);
      fill(inside, ...(box.open ? body(row) : []));
    });
    return box;
  };

  const list = () => {
    const scope = rows.filter(inScope);
    for (const button of document.querySelectorAll("[data-kind]")) {
      const kind = button.dataset.kind;
      const count = scope.filter((row) => KINDS[kind](row, state.at)).length;
      button.setAttribute("aria-pressed", String(kind === state.kind));
      button.querySelector("b").textContent = scope.some(COULD[kind]) ? count : "–";
    }
    const found = scope.filter((row) => KINDS[state.kind](row, state.at));
    fill(byId("list"), ...found.slice(0, state.most).map(line));
    const all = rows.filter((row) => row.measure.attack === state.attack).length;
    byId("count").textContent = `${found.length} of ${all} prompts, at ${data.lams[state.at]}`;
    byId("more").hidden = found.length <= state.most;
  };

  const show = () => {
    document.querySelectorAll("figure[data-attack]").forEach((figure) => {
      figure.hidden = state.attack > 0 && Number(figure.dataset.attack) !== state.attack;
    });
    byId("lam").setAttribute("aria-valuetext", data.lams[state.at]);
    document.querySelectorAll(".at-lam").forEach((place) => { place.textContent = data.lams[state.at]; });
    tiles();
    cursors();
    if (rows.length === 0) return;
    bars();
    list();
  };

  // --- wiring -------------------------------------------------------------------------------------------------------

  const set = (change) => {
    Object.assign(state, { most: PAGE }, change);
    show();
  };
  const option = (value, text) => {
    const made = make("option", "", text);
    made.value = value;
    return made;
  };

  byId("lam").max = last;
  byId("lam").value = state.at;
  byId("lam").addEventListener("input", (event) => set({ at: Number(event.target.value), most: state.most }));
  if (rows.length > 0) {
    if (!rows.some((row) => row.split === 0)) state.split = "";
    byId("split").value = state.split;
    byId("set").append(...[...new Set(data.measures.map((measure) => measure.set))].map((name) => option(name, name)));
    for (const key of ["split", "set"]) {
      byId(key).addEventListener("change", (event) => set({ [key]: event.target.value }));
    }
    byId("words").addEventListener("input", (event) => set({ words: event.target.value.trim().toLowerCase() }));
    byId("more").addEventListener("click", () => set({ most: state.most + PAGE }));
    for (const button of document.querySelectorAll("[data-kind]")) {
      button.addEventListener("click", () => set({ kind: button.dataset.kind }));
    }
  }
  if (data.attacks > 1) {
    byId("attack").addEventListener("change", (event) => set({ attack: Number(event.target.value) }));
  }
  document.querySelectorAll("[data-script]").forEach((part) => { part.hidden = false; });
  show();
})();
