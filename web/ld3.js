// What the nodes need from ComfyUI's frontend beyond widgets and outputs; works in both renderers.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TEXT = "$$node-text-preview"; // the frontend's widget for send_progress_text
const LINE = 15, LETTER = 6.2, BORDER = 44; // pixels of that text

const isOurs = (node) => node?.comfyClass?.startsWith("LD3") ?? false;
const nodeOf = (id) => app.graph?.getNodeById(Number(String(id).split(":").pop()));

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

app.registerExtension({
    name: "LD3",
    nodeCreated(node) {
        if (!isOurs(node)) return;
        hideExpertWidgets(node);
        node.setSize([Math.max(node.size[0], 300), node.computeSize()[1]]);
    },
    loadedGraphNode(node) {
        if (isOurs(node)) hideExpertWidgets(node);
    },
    getNodeMenuItems(node) {
        if (!isOurs(node) || !hasAdvanced(node) || window.LiteGraph?.vueNodesMode) return [];
        const shown = node.properties.ld3_advanced;
        const content = shown ? "Hide advanced inputs" : "Show advanced inputs";
        return [{ content, callback: () => toggleAdvanced(node) }];
    },
    setup() {
        let running = null;
        api.addEventListener("executing", ({ detail }) => { running = detail ?? running; });
        api.addEventListener("executed", ({ detail }) => {
            if (!isOurs(nodeOf(detail.node))) return;
            dropLivePicture(detail.node);
            // a cached result comes without the text that the node wrote while it ran
            const text = detail.output?.text?.[0];
            const said = { nodeId: detail.node, prompt_id: detail.prompt_id, text };
            if (text) api.dispatchEvent(new CustomEvent("progress_text", { detail: said }));
            if (detail.output?.ld3_file) app.reloadNodeDefs?.(); // lists the new schedule
        });
        for (const event of ["execution_interrupted", "execution_error"])
            api.addEventListener(event, ({ detail }) => {
                const id = detail?.node_id ?? running;
                if (isOurs(nodeOf(id))) dropLivePicture(id);
            });
        api.addEventListener("progress_text", ({ detail }) => {
            const node = nodeOf(detail.nodeId);
            if (isOurs(node)) setTimeout(() => fitText(node)); // after the frontend has set it
        });
    },
});
