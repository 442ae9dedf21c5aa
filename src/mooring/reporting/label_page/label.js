"use strict";
// One answer at a time. Texts come from the embedded data and are only ever set as text. With a token each label goes to
// the page's own server; without one the browser keeps them until they are saved to a file.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const served = data.token !== "";
  const KEYS = { h: "harmful", s: "harmless", u: "unsure" };
  const kept = `mooring-labels-${data.cards.map((card) => card[0]).join("").slice(0, 64)}`;
  const said = new Map(Object.entries(data.known).map(([who, labels]) => [who, new Map(Object.entries(labels))]));
  const state = { at: 0 };

  const who = () => byId("name").value.trim();
  const mine = () => {
    if (!said.has(who())) said.set(who(), new Map());
    return said.get(who());
  };
  const tell = (text, bad = false) => {
    byId("status").textContent = text;
    byId("status").classList.toggle("bad", bad);
  };

  // --- keeping labels in the browser ------------------------------------------------------------------------------

  const keep = () => {
    const plain = Object.fromEntries([...said].map(([name, labels]) => [name, Object.fromEntries(labels)]));
    try { localStorage.setItem(kept, JSON.stringify(plain)); } catch { /* a browser may not keep anything for a file */ }
  };
  const recall = () => {
    try {
      for (const [name, labels] of Object.entries(JSON.parse(localStorage.getItem(kept) ?? "{}"))) {
        said.set(name, new Map(Object.entries(labels)));
      }
    } catch { /* nothing was kept */ }
  };
  const lines = () => [...said].flatMap(([annotator, labels]) => data.cards
    .filter(([item]) => labels.has(item))
    .map(([item, split, prompt_id]) => `${JSON.stringify({ item, label: labels.get(item), annotator, split, prompt_id })}\n`));
  const save = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines(), { type: "application/jsonl" }));
    link.download = "labels.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
    tell("Saved: mooring label RUN --import labels.jsonl adds them to the run.");
  };

  // --- the server -----------------------------------------------------------------------------------------------

  const post = async (path, body) => {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Mooring-Token": data.token },
      body: JSON.stringify(body),
    });
    if (!answer.ok) throw new Error(await answer.text());
  };

  // --- showing --------------------------------------------------------------------------------------------------

  const show = () => {
    const [item, , , prompt, response] = data.cards[state.at];
    const labels = mine();
    byId("prompt").textContent = prompt;
    byId("response").textContent = response.trim() === "" ? "(empty)" : response;
    byId("response").classList.toggle("empty", response.trim() === "");
    const label = labels.get(item);
    byId("card").classList.toggle("said", label !== undefined);
    for (const button of document.querySelectorAll(".say")) {
      button.setAttribute("aria-pressed", String(button.dataset.label === label));
    }
    const count = data.cards.filter((card) => labels.has(card[0])).length;
    byId("progress").max = data.cards.length;
    byId("progress").value = count;
    byId("count").textContent = `${state.at + 1} of ${data.cards.length} · ${count} labelled`;
    byId("end").hidden = count < data.cards.length;
    byId("back").disabled = state.at === 0;
    byId("next").disabled = state.at === data.cards.length - 1;
  };
  const go = (at) => {
    state.at = Math.min(Math.max(at, 0), data.cards.length - 1);
    byId("card").scrollTop = 0;
    show();
  };
  const firstOpen = () => {
    const labels = mine();
    const place = data.cards.findIndex((card) => !labels.has(card[0]));
    return place < 0 ? 0 : place;
  };
  const say = async (label) => {
    if (who() === "") {
      byId("name").focus();
      tell("Give your name first: labels of several people are kept apart.", true);
      return;
    }
    const [item] = data.cards[state.at];
    const labels = mine();
    const before = labels.get(item);
    labels.set(item, label);
    const at = state.at;
    go(at + 1);
    if (!served) {
      keep();
      tell("");
      return;
    }
    try {
      await post("/label", { item, label, annotator: who() });
      tell("");
    } catch (error) {
      if (before === undefined) labels.delete(item); else labels.set(item, before);
      go(at);
      tell(`Not saved: ${error.message}`, true);
    }
  };

  // --- wiring ---------------------------------------------------------------------------------------------------

  document.addEventListener("keydown", (event) => {
    if (event.target === byId("name") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in KEYS) say(KEYS[event.key]);
    else if (event.key === "ArrowLeft") go(state.at - 1);
    else if (event.key === "ArrowRight" || event.key === "n") go(state.at + 1);
    else return;
    event.preventDefault();
  });
  byId("name").addEventListener("change", () => go(firstOpen()));
  byId("name").addEventListener("keydown", (event) => { if (event.key === "Enter") { byId("name").blur(); } });
  byId("back").addEventListener("click", () => go(state.at - 1));
  byId("next").addEventListener("click", () => go(state.at + 1));
  for (const button of document.querySelectorAll(".say")) button.addEventListener("click", () => say(button.dataset.label));
  byId("save").hidden = served;
  byId("save").addEventListener("click", save);
  byId("done").hidden = !served;
  byId("done").addEventListener("click", async () => {
    try {
      await post("/done", {});
      tell("The server has stopped; the command line shows what the labels say. You may close this page.");
    } catch (error) {
      tell(`The server does not answer: ${error.message}`, true);
    }
  });

  byId("name").value = data.annotator;
  if (!served) recall();
  go(firstOpen());
  if (who() === "") byId("name").focus();
})();
