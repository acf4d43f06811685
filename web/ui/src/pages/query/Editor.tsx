// The editor with Prometheus's own PromQL mode. It is large and loaded after the page.

import {
  autocompletion,
  type CompletionContext,
  type CompletionResult,
  closeBrackets,
  closeBracketsKeymap,
  completionKeymap,
} from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, insertNewlineAndIndent } from "@codemirror/commands";
import { bracketMatching, HighlightStyle, indentOnInput, syntaxHighlighting } from "@codemirror/language";
import { lintKeymap } from "@codemirror/lint";
import { Compartment, EditorState, Prec } from "@codemirror/state";
import { EditorView, keymap, placeholder } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { type CompleteStrategy, newCompleteStrategy, PromQLExtension } from "@prometheus-io/codemirror-promql";
import { useEffect, useRef } from "react";
import { basePath } from "../../api/client";
import { bootSettings } from "../../api/types";
import { useSettings } from "../../lib/settings";
import { queryHistory } from "./history";
import { hoverHelp } from "./hover";

const colours = HighlightStyle.define([
  { tag: tags.number, color: "var(--code-number)" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--code-string)" },
  { tag: [tags.keyword, tags.modifier, tags.operatorKeyword], color: "var(--code-keyword)", fontWeight: "600" },
  { tag: tags.function(tags.variableName), color: "var(--code-function)" },
  { tag: [tags.labelName, tags.propertyName], color: "var(--code-label)" },
  { tag: tags.operator, color: "var(--code-keyword)" },
  { tag: tags.comment, color: "var(--mantine-color-dimmed)", fontStyle: "italic" },
  { tag: tags.invalid, color: "var(--bad)" },
]);

const look = EditorView.theme({
  "&": { fontSize: "0.875rem", backgroundColor: "transparent" },
  "&.cm-focused": { outline: "none" },
  ".cm-content": { fontFamily: "var(--mantine-font-family-monospace)", padding: "7px 0", caretColor: "var(--mantine-color-text)" },
  ".cm-line": { padding: "0 2px" },
  ".cm-scroller": { maxHeight: "14rem", lineHeight: "1.5" },
  ".cm-placeholder": { color: "var(--mantine-color-placeholder)", fontFamily: "var(--mantine-font-family)" },
  ".cm-cursor": { borderLeftColor: "var(--mantine-color-text)" },
  "&.cm-focused .cm-selectionBackground, .cm-selectionBackground": { background: "var(--info-soft) !important" },
  ".cm-matchingBracket, &.cm-focused .cm-matchingBracket": { backgroundColor: "var(--info-soft)", outline: "1px solid var(--info)" },
  ".cm-tooltip": {
    backgroundColor: "var(--mantine-color-body)",
    border: "1px solid var(--line)",
    borderRadius: "6px",
    boxShadow: "0 6px 20px rgb(0 0 0 / 0.16)",
    overflow: "hidden",
  },
  ".cm-tooltip-autocomplete > ul": { fontFamily: "var(--mantine-font-family-monospace)", maxHeight: "20rem" },
  ".cm-tooltip-autocomplete > ul > li": { padding: "2px 8px", lineHeight: "1.6" },
  ".cm-tooltip-autocomplete ul li[aria-selected]": { backgroundColor: "var(--mantine-primary-color-filled)", color: "#fff" },
  ".cm-completionMatchedText": { textDecoration: "none", fontWeight: "700" },
  ".cm-completionDetail": { fontStyle: "normal", opacity: "0.75", float: "right", marginLeft: "1.5em" },
  ".cm-tooltip.cm-completionInfo": { padding: "6px 10px", maxWidth: "26rem", whiteSpace: "pre-wrap" },
  ".cm-hover": { padding: "6px 10px", maxWidth: "26rem", fontFamily: "var(--mantine-font-family)" },
  ".cm-diagnostic": { padding: "5px 10px", fontFamily: "var(--mantine-font-family)" },
});

/** Whole queries of before, at the start of an expression. */
class WithHistory implements CompleteStrategy {
  constructor(private readonly inner: CompleteStrategy) {}
  async promQL(context: CompletionContext): Promise<CompletionResult | null> {
    const result = await this.inner.promQL(context);
    const typed = context.state.sliceDoc(0, context.pos);
    if (context.state.doc.length > context.pos || typed.trim() === "") return result;
    const options = queryHistory()
      .filter((q) => q.startsWith(typed.trimStart()) && q !== typed)
      .slice(0, 8)
      .map((q) => ({
        label: q.length < 80 ? q : `${q.slice(0, 76)}…`,
        detail: "asked before",
        apply: q.slice(typed.trimStart().length ? (result?.from ?? 0) : 0),
        boost: -99,
      }));
    if (!result || options.length === 0) return result;
    return { ...result, options: [...result.options, ...options] };
  }
}

export interface EditorProps {
  value: string;
  onChange: (value: string) => void;
  onRun: (value: string) => void;
  label: string;
  autoFocus?: boolean;
}

export default function Editor({ value, onChange, onRun, label, autoFocus }: EditorProps) {
  const box = useRef<HTMLDivElement>(null);
  const view = useRef<EditorView>(null);
  const calls = useRef({ onChange, onRun });
  calls.current = { onChange, onRun };
  const first = useRef({ value, label, autoFocus });
  const mode = useRef(new Compartment());
  const { settings } = useSettings();
  const { autocomplete, linter, highlight, history: withHistory } = settings;

  useEffect(() => {
    const run = () => {
      calls.current.onRun(v.state.doc.toString());
      return true;
    };
    const v = new EditorView({
      parent: box.current!,
      state: EditorState.create({
        doc: first.current.value,
        selection: { anchor: first.current.value.length },
        extensions: [
          EditorView.cspNonce.of(bootSettings().nonce ?? ""),
          look,
          history(),
          indentOnInput(),
          bracketMatching(),
          closeBrackets(),
          autocompletion({ icons: false }),
          hoverHelp,
          EditorView.lineWrapping,
          placeholder("PromQL: up, rate(http_requests_total[5m]), …"),
          EditorView.contentAttributes.of({ "aria-label": first.current.label, "aria-multiline": "true", autocapitalize: "off" }),
          // Tab is not bound: it leaves, as everywhere.
          keymap.of([...closeBracketsKeymap, ...defaultKeymap, ...historyKeymap, ...completionKeymap, ...lintKeymap]),
          keymap.of([
            {
              key: "Escape",
              run: (e) => {
                e.contentDOM.blur();
                return true;
              },
            },
          ]),
          // After the completion, which takes Enter while its list is open.
          Prec.high(
            keymap.of([
              { key: "Enter", run: (e) => (e.dom.querySelector(".cm-tooltip-autocomplete li[aria-selected]") ? false : run()) },
              { key: "Mod-Enter", run },
              { key: "Shift-Enter", run: insertNewlineAndIndent },
            ]),
          ),
          mode.current.of([]),
          EditorView.updateListener.of((u) => {
            if (u.docChanged) calls.current.onChange(u.state.doc.toString());
          }),
        ],
      }),
    });
    view.current = v;
    // Not away from the heading, which has it after navigation: the editor may come much later.
    if (first.current.autoFocus && document.activeElement === document.body) v.focus();
    return () => v.destroy();
  }, []);

  useEffect(() => {
    const plain = newCompleteStrategy({ remote: { url: basePath().replace(/\/$/, ""), httpMethod: "GET" } });
    const promql = new PromQLExtension()
      .activateCompletion(autocomplete)
      .activateLinter(linter)
      .setComplete({ completeStrategy: withHistory ? new WithHistory(plain) : plain });
    view.current?.dispatch({
      effects: mode.current.reconfigure([promql.asExtension(), ...(highlight ? [syntaxHighlighting(colours)] : [])]),
    });
  }, [autocomplete, linter, highlight, withHistory]);

  useEffect(() => {
    const v = view.current;
    if (v && v.state.doc.toString() !== value) v.dispatch({ changes: { from: 0, to: v.state.doc.length, insert: value } });
  }, [value]);

  return <div ref={box} style={{ flex: 1, minWidth: 0 }} />;
}
