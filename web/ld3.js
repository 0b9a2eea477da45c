// What the nodes need from ComfyUI's frontend beyond widgets and outputs; works in both renderers.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TEXT = "$$node-text-preview"; // the frontend's widget for send_progress_text
const LINE = 15, LETTER = 6.2, BORDER = 44; // pixels of that text

const COLOURS = { LD3_SCHEDULE: "#d1495b", LD3_TRAINING_OPTIONS: "#8f9bb3" };

const isOurs = (node) => node?.comfyClass?.startsWith("LD3") ?? false;
function nodeOf(id) { // "4:1" is node 1 in the subgraph of node 4
    let graph = app.graph, node;
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(Number(part));
        graph = node?.subgraph;
    }
    return node;
}

function everyNode(graph = app.graph) { // those in subgraphs too
    return graph.nodes.flatMap((node) => node.subgraph ? everyNode(node.subgraph) : [node]);
}
const isPresent = (node) => node.graph?.getNodeById(node.id) === node;

// Slots and links of our types; the classic renderer forgets them when the theme changes.
function colourSlots() {
    for (const [type, colour] of Object.entries(COLOURS)) {
        app.canvas.default_connection_color_byType[type] = colour;
        app.canvas.constructor.link_type_colors[type] = colour;
    }
    app.canvas.setDirty(true, true);
}

function addSlotColours() {
    const style = document.createElement("style"); // for Nodes 2.0; a theme removes inline ones
    const values = Object.entries(COLOURS).map(([t, colour]) => `--color-datatype-${t}: ${colour};`);
    style.textContent = `:root { ${values.join(" ")} }`;
    document.head.append(style);
    colourSlots();
    app.ui?.settings?.addEventListener?.("Comfy.ColorPalette.change", () =>
        setTimeout(colourSlots, 500)); // after the frontend has applied it
}

// Frontend 1.47 to 1.58 keep a node's live picture after its result has come, or beside it.
function dropLivePicture(id) {
    const vue = document.getElementById("vue-app")?.__vue_app__;
    const stores = vue?.config.globalProperties.$pinia?._s;
    stores?.get("nodeOutput")?.revokePreviewsByExecutionId?.(String(id));
    const node = nodeOf(id);
    if (window.LiteGraph?.vueNodesMode) return;
    setTimeout(() => { // revoked after 0.4 s; then the classic renderer must look again
        node.images = node.preview = node.imgs = undefined;
        node.setDirtyCanvas?.(true, true);
    }, 600);
}

// The classic renderer gives the text two lines, and scrolls the others.
function fitText(node) {
    const widget = node.widgets?.find((w) => w.name === TEXT);
    if (!widget?.options) return;
    widget.hidden = widget.options.hidden = !String(widget.value).trim();
    if (widget.hidden || window.LiteGraph?.vueNodesMode) return;
    const letters = Math.max(20, (node.size[0] - BORDER) / LETTER);
    const lines = String(widget.value).split("\n")
        .reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0);
    const height = BORDER + LINE * Math.max(1, lines);
    if (height === widget.options.getMinHeight?.()) return;
    widget.options.getMinHeight = () => height;
    const least = node.computeSize();
    if (node.size[1] < least[1]) node.setSize([node.size[0], least[1]]);
    node.setDirtyCanvas?.(true, true);
}

// Widgets that another node replaced are hidden, and in the classic renderer, as in Nodes 2.0,
// advanced ones until they are asked for; but never one with another value than its default.
function hideExpertWidgets(node) {
    const inputs = node.constructor.nodeData?.input ?? {};
    const defaults = { ...inputs.required, ...inputs.optional };
    const classic = !window.LiteGraph?.vueNodesMode;
    for (const widget of node.widgets ?? []) {
        const [options, given = {}] = defaults[widget.name] ?? [];
        if (!given.hidden && !(classic && given.advanced)) continue;
        const standard = given.default ?? given.options?.[0] ?? options?.[0];
        const wanted = given.hidden ? false : node.properties.ld3_advanced;
        widget.hidden = widget.options.hidden = !wanted && widget.value === standard;
    }
}

function toggleAdvanced(node) {
    node.properties.ld3_advanced = !node.properties.ld3_advanced;
    hideExpertWidgets(node);
    node.setSize([node.size[0], node.computeSize()[1]]);
    node.setDirtyCanvas(true, true);
}

function hasAdvanced(node) {
    const inputs = node.constructor.nodeData?.input ?? {};
    return Object.values({ ...inputs.required, ...inputs.optional })
        .some(([, given]) => given?.advanced && !given.hidden);
}

// Our own texts in the language of the settings, from locales/LANGUAGE/main.json; else English.
let translated = {};
const say = (text, name = "") => (translated[text] ?? text).replace("{name}", () => name);
async function loadTexts() {
    const language = app.extensionManager.setting.get("Comfy.Locale");
    const every = await (await api.fetchApi("/i18n")).json();
    translated = every[language]?.ld3 ?? {};
}

const NO_SCHEDULE = "no schedule yet"; // how the text in an empty list begins
const noSchedule = (name) => String(name).startsWith(NO_SCHEDULE);
const nameOf = (node) => node.widgets?.find((w) => w.name === "name");
const toast = (severity, detail) =>
    app.extensionManager.toast.add({ severity, summary: "LD3", detail, life: 6000 });

async function ask(path, body) {
    const json = { "Content-Type": "application/json" };
    const options = body && { method: "POST", headers: json, body: JSON.stringify(body) };
    const answer = await api.fetchApi(`/ld3/${path}`, options);
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error ?? answer.statusText);
    return found;
}

// LD3 Load Schedule shows what the chosen file contains, before anything runs.
function addContents(node) {
    const box = document.createElement("div"), image = document.createElement("img");
    const words = document.createElement("div");
    box.style.cssText = "overflow:auto;font-size:11px;line-height:1.35;color:var(--input-text)";
    image.style.cssText = "width:100%;border-radius:4px";
    image.alt = "noise levels";
    words.style.cssText = "white-space:pre-line;padding:4px";
    box.append(image, words);
    const options = { serialize: false, getMinHeight: () => 250, getMaxHeight: () => 420 };
    const widget = node.addDOMWidget("contents", "ld3_contents", box, options);
    widget.serialize = false;
    const name = nameOf(node), before = name.callback;
    node.ld3Update = async () => {
        if (!isPresent(node)) return; // removed, with a list that is no longer kept up to date
        const file = encodeURIComponent(name.value ?? "");
        image.hidden = true;
        if (!(name.options.values ?? []).includes(name.value) || noSchedule(name.value)) {
            words.textContent = noSchedule(name.value)
                ? say("no schedule yet: train one with LD3 Train Schedule")
                : say("There is no schedule {name} in models/ld3. Choose another one.", name.value);
            return;
        }
        try {
            const found = await ask(`schedule?name=${file}`);
            if (!isPresent(node)) return;
            node.ld3Listed = found.listed;
            words.textContent = found.summary;
            if (found.listed) words.textContent += `\n${say("Shown in the list of schedulers.")}`;
            image.src = api.apiURL(`/ld3/picture?name=${file}&t=${Date.now()}`);
            image.hidden = false;
        } catch (error) {
            words.textContent = error.message;
        }
    };
    name.callback = function (...values) {
        const result = before?.apply(this, values);
        node.ld3Update();
        return result;
    };
    setTimeout(node.ld3Update); // a loaded or pasted node gets its value after it was made
}

function choose(node, file) {
    const name = nameOf(node);
    name.value = file;
    name.callback?.(file);
}

// Lists the files anew; nodes that had none take the given one, or the first.
async function refreshLists(file, changed = {}) {
    await app.reloadNodeDefs?.();
    for (const node of everyNode().filter((n) => n.comfyClass === "LD3LoadSchedule")) {
        const name = nameOf(node), files = name.options.values ?? [];
        if (name.value === changed.from) choose(node, changed.to);
        else if (noSchedule(name.value) && files.length)
            choose(node, file ?? files[0]);
    }
}

async function tried(action) {
    try {
        await action();
    } catch (error) {
        toast("error", error.message);
    }
}

async function copy(text, message) {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else { // over http from another computer
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        const copied = document.execCommand("copy");
        area.remove();
        if (!copied) throw new Error(text);
    }
    toast("success", message);
}

function scheduleMenu(node) {
    const file = nameOf(node)?.value, { dialog } = app.extensionManager;
    const shared = () => ask(`schedule?name=${encodeURIComponent(file)}`);
    const list = async (listed) => {
        await ask("list", { name: file, listed });
        await app.reloadNodeDefs?.();
        const name = `LD3: ${file.replace(/\.safetensors$/, "")}`;
        toast("success", listed ? say("{name} is in the list of schedulers", name)
            : say("{name} is not in the list of schedulers", name));
        node.ld3Update();
    };
    const items = {
        "Copy sigmas for ManualSigmas": async () =>
            copy((await shared()).sigmas, say("sigmas copied")),
        "Copy schedule as one line": async () =>
            copy((await shared()).line, say("schedule copied")),
        "Import schedule from a line": async () => {
            const asked = (message) => dialog.prompt({ title: "LD3", message });
            const line = await asked(say("The copied line"));
            if (!line) return;
            const name = await asked(say("Name of the schedule"));
            if (!name) return;
            const saved = (await ask("import", { line, name })).name;
            await refreshLists();
            choose(node, saved);
        },
        "Write a note": async () => {
            const { note } = await shared();
            const message = say("A note, kept in the file and shared with it");
            const wanted = { title: "LD3", message, defaultValue: note };
            const text = await dialog.prompt(wanted);
            if (text === null || text === undefined || text === note) return;
            await ask("note", { name: file, note: text });
            node.ld3Update();
        },
        "Show in scheduler list": async () => list(true),
        "Hide from scheduler list": async () => list(false),
        "Rename schedule": async () => {
            const old = file.replace(/\.safetensors$/, "").split(/[\\/]/).pop();
            const message = say("New name");
            const to = await dialog.prompt({ title: "LD3", message, defaultValue: old });
            if (!to || to === old) return;
            const renamed = (await ask("rename", { name: file, new: to })).name;
            await refreshLists(undefined, { from: file, to: renamed });
        },
        "Delete schedule": async () => {
            const message = say("Delete {name}? This cannot be undone.", file);
            if (!(await dialog.confirm({ title: "LD3", message }))) return;
            await ask("delete", { name: file });
            await refreshLists();
            node.ld3Update();
        },
    };
    delete items[node.ld3Listed ? "Show in scheduler list" : "Hide from scheduler list"];
    return Object.entries(items).map(([content, action]) => (
        { content: say(content), callback: () => tried(action) }));
}

app.registerExtension({
    name: "ld3schedules.nodes", // packs share one list of names
    nodeCreated(node) {
        if (!isOurs(node)) return;
        if (!(app.canvas.default_connection_color_byType.LD3_SCHEDULE)) colourSlots();
        hideExpertWidgets(node);
        if (node.comfyClass === "LD3LoadSchedule") addContents(node);
        const configured = node.onConfigure;
        node.onConfigure = function (...values) { // of loaded and pasted nodes, with their values
            configured?.apply(this, values);
            hideExpertWidgets(node);
        };
        node.setSize([Math.max(node.size[0], 300), node.computeSize()[1]]);
    },
    loadedGraphNode(node) {
        if (node.comfyClass !== "LD3LoadSchedule") return;
        const name = nameOf(node), [first] = name.options.values ?? [];
        if (first && noSchedule(name.value)) choose(node, first);
    },
    getNodeMenuItems(node) {
        if (node.comfyClass === "LD3LoadSchedule") return scheduleMenu(node);
        if (!isOurs(node) || !hasAdvanced(node) || window.LiteGraph?.vueNodesMode) return [];
        const shown = node.properties.ld3_advanced;
        const content = shown ? say("Hide advanced inputs") : say("Show advanced inputs");
        return [{ content, callback: () => toggleAdvanced(node) }];
    },
    setup() {
        addSlotColours();
        loadTexts();
        let running = null;
        api.addEventListener("executing", ({ detail }) => { running = detail ?? running; });
        api.addEventListener("executed", ({ detail }) => {
            if (detail.output?.ld3_file) refreshLists(detail.output.ld3_file[0]);
            if (!isOurs(nodeOf(detail.node))) return;
            dropLivePicture(detail.node);
            // a cached result comes without the text that the node wrote while it ran
            const text = detail.output?.text?.[0];
            const said = { nodeId: detail.node, prompt_id: detail.prompt_id, text };
            if (text) api.dispatchEvent(new CustomEvent("progress_text", { detail: said }));
        });
        for (const event of ["execution_interrupted", "execution_error"])
            api.addEventListener(event, ({ detail }) => {
                const id = detail?.node_id ?? running;
                if (isOurs(nodeOf(id))) dropLivePicture(id);
            });
        const said = new Map(); // the last text of each node, by id
        api.addEventListener("progress_text", ({ detail }) => {
            const node = nodeOf(detail.nodeId);
            if (!isOurs(node)) return;
            said.set(detail.nodeId, [node, detail.text]);
            setTimeout(() => fitText(node)); // after the frontend has set it
        });
        const sayAgain = () => { // frontend 1.58 removes all texts when a run ends
            for (const [nodeId, [node, text]] of said)
                if (text.trim() && nodeOf(nodeId) === node
                    && !node.widgets.some((w) => w.name === TEXT))
                    api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId, text } }));
        };
        for (const event of ["execution_success", "execution_interrupted", "execution_error"])
            api.addEventListener(event, () => setTimeout(sayAgain, 500));
    },
});
