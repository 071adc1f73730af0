"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const bytes = (text) => {
    const letters = atob(text);
    const found = new Uint8Array(letters.length);
    for (let at = 0; at < letters.length; at += 1) found[at] = letters.charCodeAt(at);
    return found;
  };
  const fixed = (value, digits = 3) => (value === null ? "\u2013" : value.toFixed(digits));

  async function unpacked(id) {
    const packed = new Blob([bytes($(id).textContent)]).stream();
    return new Response(packed.pipeThrough(new DecompressionStream("deflate"))).text();
  }

  function say(text) {
    $("status").textContent = text;
    $("status").hidden = text === "";
  }

  // -- theme: as the system, light, dark ---------------------------------------------------------
  const themes = ["auto", "light", "dark"];
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    $("theme").textContent = `Theme: ${next}`;
  });

  // -- charts ------------------------------------------------------------------------------------
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    doubleClickDelay: 400,
  };

  function jaccardRows(jaccard, count) {
    const pairs = bytes(jaccard.pairs);
    const { order, levels, none } = jaccard;
    const value = (a, b) => {
      if (a === b) return 1;
      const [i, j] = a < b ? [a, b] : [b, a];
      const found = pairs[i * count - (i * (i + 1)) / 2 + (j - i - 1)];
      return found === none ? NaN : found / levels;
    };
    return order.map((a) => Float32Array.from(order, (b) => value(a, b)));
  }

  async function draw(name, chart, data, show) {
    const plot = $(name);
    const figure = chart.figure;
    if (name === "jaccard") figure.data[0].z = jaccardRows(data.jaccard, data.count);
    await Plotly.newPlot(plot, figure.data, figure.layout, config);
    // With a view box the drawing can be scaled to the paper.
    const shape = () => {
      for (const svg of plot.querySelectorAll(".main-svg")) {
        const [width, height] = [svg.getAttribute("width"), svg.getAttribute("height")];
        svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
        plot.style.setProperty("--shape", `${width} / ${height}`);
      }
    };
    plot.on("plotly_afterplot", shape);
    shape();
    if (name === "jaccard") bindJaccard(plot, data, figure.data[0].z, show);
    else if (chart.picks) {
      plot.on("plotly_click", (event) => {
        const point = event.points[0];
        const row = data.layers.indexOf(Number(point.y));
        if (row >= 0) show(row * data.perLayer + point.x, true);
      });
    }
  }

  function bindJaccard(plot, data, rows, show) {
    const { order } = data.jaccard;
    const inside = (point) => point.curveNumber === 0;
    plot.on("plotly_hover", (event) => {
      const point = event.points.find(inside);
      if (!point) return;
      const [column, row] = point.pointNumber.slice().reverse();
      const found = rows[row][column];
      $("jaccard-readout").textContent =
        `${data.name(order[row])} with ${data.name(order[column])}: ` +
        (Number.isNaN(found) ? "both empty" : `Jaccard ${found.toFixed(2)}`);
    });
    plot.on("plotly_click", (event) => {
      const point = event.points.find(inside);
      if (point) show(order[point.pointNumber[0]], true);
    });
  }

  // -- gallery -----------------------------------------------------------------------------------
  class Gallery {
    constructor(data) {
      this.data = data;
      this.colours = lookup(data.cividis);
      this.prompts = data.gallery.map((prompt) => ({
        ...prompt,
        masks: bytes(prompt.masks),
        mass: prompt.mass === null ? null : bytes(prompt.mass),
      }));
      this.selected = -1;
      this.buildGrid();
      this.buildPickers();
      $("to-anchor").addEventListener("click", () => this.show(data.heads.anchor[this.selected]));
      $("to-lender").addEventListener("click", () => this.show(data.heads.lender[this.selected]));
      const wanted = /^#head-(\d+)-(\d+)$/.exec(location.hash);
      const row = wanted ? data.layers.indexOf(Number(wanted[1])) : -1;
      this.show(row >= 0 && wanted[2] < data.perLayer ? row * data.perLayer + +wanted[2] : data.first);
    }

    buildGrid() {
      const { layers, perLayer, heads } = this.data;
      const between = (low, value, high) => `${Math.round(Math.min(high, Math.max(low, value)))}px`;
      $("grid").style.setProperty("--wide", between(14, 330 / perLayer, 34));
      $("grid").style.setProperty("--high", between(14, 620 / layers.length, 24));
      const anchors = new Set(heads.anchor);
      this.cells = [];
      layers.forEach((layer) => {
        const row = document.createElement("div");
        row.setAttribute("role", "row");
        const header = document.createElement("span");
        header.setAttribute("role", "rowheader");
        header.textContent = layer;
        row.append(header);
        for (let head = 0; head < perLayer; head += 1) {
          const cell = document.createElement("button");
          const index = this.cells.length;
          cell.type = "button";
          cell.tabIndex = -1;
          cell.dataset.head = index;
          cell.setAttribute("role", "gridcell");
          cell.setAttribute("aria-selected", "false");
          if (anchors.has(index)) cell.className = "anchor";
          cell.addEventListener("click", () => this.show(index));
          row.append(cell);
          this.cells.push(cell);
        }
        $("grid").append(row);
      });
      $("grid").addEventListener("keydown", (event) => this.onKey(event));
      $("paint").addEventListener("change", () => this.paint());
      this.paint();
    }

    buildPickers() {
      const { layers, perLayer } = this.data;
      layers.forEach((layer, row) => $("pick-layer").add(new Option(layer, row)));
      for (let head = 0; head < perLayer; head += 1) $("pick-head").add(new Option(head, head));
      for (const id of ["pick-layer", "pick-head"]) {
        $(id).addEventListener("change", () =>
          this.show(Number($("pick-layer").value) * perLayer + Number($("pick-head").value)));
      }
    }

    paint() {
      const { heads, palette, assignments, costTop, densityTop } = this.data;
      const how = $("paint").value;
      const scaled = (value, top) =>
        value === null ? "transparent" : this.colours.css(Math.round((255 * value) / top));
      const paints = {
        density: (i) => [scaled(heads.density[i], densityTop), `density ${fixed(heads.density[i])}`],
        cost: (i) => [scaled(heads.cost[i], costTop), `predicted cost ${fixed(heads.cost[i])}`],
        cluster: (i) => {
          const cluster = heads.cluster[i];
          if (cluster < 0) return ["var(--line)", "no cluster"];
          return [palette[heads.clusterPlace[i] % palette.length], `cluster ${cluster}`];
        },
        assignment: (i) => [assignments[heads.assignment[i]], heads.assignment[i]],
      };
      this.cells.forEach((cell, index) => {
        const [colour, words] = paints[how](index);
        cell.style.background = colour;
        cell.title = `${this.data.name(index)}: ${words}`;
        cell.setAttribute("aria-label", cell.title);
      });
    }

    onKey(event) {
      const { perLayer } = this.data;
      const at = this.selected;
      const column = at % perLayer;
      const steps = {
        ArrowLeft: column > 0 ? at - 1 : at,
        ArrowRight: column < perLayer - 1 ? at + 1 : at,
        ArrowUp: at - perLayer,
        ArrowDown: at + perLayer,
        Home: at - column,
        End: at - column + perLayer - 1,
        PageUp: column,
        PageDown: this.cells.length - perLayer + column,
      };
      const next = steps[event.key];
      if (next === undefined) return;
      event.preventDefault();
      if (next >= 0 && next < this.cells.length) {
        this.show(next);
        this.cells[next].focus();
      }
    }

    show(index, come = false) {
      if (index === null || index < 0) return;
      const { heads, perLayer, layers } = this.data;
      if (this.selected >= 0) {
        this.cells[this.selected].setAttribute("aria-selected", "false");
        this.cells[this.selected].tabIndex = -1;
        history.replaceState(null, "", `#head-${layers[Math.floor(index / perLayer)]}-${index % perLayer}`);
      }
      this.selected = index;
      this.cells[index].setAttribute("aria-selected", "true");
      this.cells[index].tabIndex = 0;
      $("pick-layer").value = Math.floor(index / perLayer);
      $("pick-head").value = index % perLayer;
      $("head-title").textContent = this.data.title(index);
      const anchor = heads.anchor[index];
      const lender = heads.lender[index];
      $("to-anchor").disabled = anchor === null;
      $("to-lender").disabled = lender === null;
      this.facts(index);
      this.prompts.forEach((prompt, number) => this.pictures(prompt, number, index, anchor));
      if (come) {
        $("heads").scrollIntoView();
        $("head-title").focus({ preventScroll: true });
      }
    }

    facts(index) {
      const { heads, name } = this.data;
      const list = $("head-facts");
      list.replaceChildren();
      const add = (term, value) => {
        const row = document.createElement("div");
        const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
        dt.textContent = term;
        dd.textContent = value;
        row.append(dt, dd);
        list.append(row);
      };
      const cluster = heads.cluster[index];
      add("cluster", cluster < 0 ? "none" : `${cluster} (${heads.enabled[index] ? "on" : "off"})`);
      const anchor = heads.anchor[index];
      add("anchor", heads.isAnchor[index] ? "this head" : anchor === null ? "none" : name(anchor));
      if (heads.assignment.length) {
        const lender = heads.lender[index];
        add("plan", heads.assignment[index] + (lender === null ? "" : ` from ${name(lender)}`));
        add("plan's cost, recall", `${fixed(heads.cost[index])}, ${fixed(heads.recall[index])}`);
      }
      for (const [term, column] of this.data.facts) add(term, fixed(heads[column][index]));
    }

    pictures(prompt, number, index, anchor) {
      const numbers = [`density ${fixed(prompt.density[index], 2)}`];
      if (prompt.jaccard[index] !== null) numbers.push(`Jaccard ${fixed(prompt.jaccard[index], 2)}`);
      if (prompt.recall && prompt.recall[index] !== null) {
        numbers.push(`recall in the anchor's mask ${fixed(prompt.recall[index], 2)}`);
      }
      $(`prompt-numbers-${number}`).textContent = numbers.join(" \u00b7 ");
      const kinds = { mask: prompt.masks, mass: prompt.mass };
      for (const [kind, values] of Object.entries(kinds)) {
        if (values === null) continue;
        this.picture($(`${kind}-${number}`), values, index, prompt, kind);
        this.picture($(`anchor-${kind}-${number}`), values, anchor, prompt, kind);
      }
    }

    picture(canvas, values, index, prompt, kind) {
      const context = canvas.getContext("2d");
      const side = prompt.side;
      context.clearRect(0, 0, side, side);
      canvas.parentElement.classList.toggle("empty", index === null);
      if (index === null) {
        canvas.setAttribute("aria-label", `no anchor's ${kind}`);
        return;
      }
      canvas.setAttribute(
        "aria-label",
        `${kind} of ${this.data.name(index)} on ${prompt.label}, density ${fixed(prompt.density[index], 2)}`,
      );
      const image = context.createImageData(side, side);
      let at = (index * side * (side + 1)) / 2;
      for (let row = 0; row < side; row += 1) {
        for (let column = 0; column <= row; column += 1) {
          image.data.set(this.colours.rgb(values[at]), 4 * (row * side + column));
          at += 1;
        }
      }
      context.putImageData(image, 0, 0);
    }
  }

  function lookup(stops) {
    const parts = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
    const table = Array.from({ length: 256 }, (_, level) => {
      const place = (level / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(place), stops.length - 2);
      const mixed = parts[low].map((value, i) =>
        Math.round(value + (parts[low + 1][i] - value) * (place - low)));
      return [...mixed, 255];
    });
    const clipped = (level) => table[Math.min(255, Math.max(0, level))];
    return { rgb: clipped, css: (level) => `rgb(${clipped(level).slice(0, 3).join(" ")})` };
  }

  // -- start -------------------------------------------------------------------------------------
  async function start() {
    say("Drawing \u2026");
    const data = JSON.parse(await unpacked("payload"));
    data.name = (index) => `${data.layers[Math.floor(index / data.perLayer)]}.${index % data.perLayer}`;
    data.title = (index) =>
      `Layer ${data.layers[Math.floor(index / data.perLayer)]}, head ${index % data.perLayer}`;
    const gallery = data.gallery.length ? new Gallery(data) : null;
    const show = (index, come) => gallery && gallery.show(index, come);
    const code = document.createElement("script");
    code.textContent = await unpacked("plotly-code");
    document.head.append(code);
    for (const [name, chart] of Object.entries(data.charts)) {
      await draw(name, chart, data, show);
      await new Promise((done) => setTimeout(done));
    }
    say("");
    document.documentElement.dataset.ready = "true";
  }

  // Everything folded is printed open.
  const folded = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = folded();
    opened.forEach((details) => { details.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));

  if (typeof DecompressionStream === "undefined") {
    say("This browser is too old for the pictures (it lacks DecompressionStream); the tables below are complete.");
  } else {
    start().catch((error) => {
      say(`The pictures could not be drawn: ${error}`);
      throw error;
    });
  }
})();
