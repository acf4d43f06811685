import { lazy, Suspense, useRef } from "react";
import type { EditorProps } from "./Editor";
import css from "./query.module.css";

const Editor = lazy(() => import("./Editor"));

/** A text field that works at once, and becomes the editor when that is there. */
export function ExpressionInput(props: EditorProps) {
  const focused = useRef(false);
  return (
    <Suspense
      fallback={
        <textarea
          className={css.plain}
          data-search
          aria-label={props.label}
          value={props.value}
          rows={Math.min(8, props.value.split("\n").length)}
          spellCheck={false}
          autoCapitalize="off"
          placeholder="PromQL: up, rate(http_requests_total[5m]), …"
          onFocus={() => {
            focused.current = true;
          }}
          onBlur={() => {
            focused.current = false;
          }}
          onChange={(e) => props.onChange(e.currentTarget.value)}
          onKeyDown={(e) => {
            if (e.key === "Escape") e.currentTarget.blur();
            if (e.key !== "Enter" || e.shiftKey) return;
            e.preventDefault();
            props.onRun(e.currentTarget.value);
          }}
        />
      }
    >
      <WithFocus focused={focused} {...props} />
    </Suspense>
  );
}

/** Whoever was typing goes on. */
function WithFocus({ focused, ...props }: EditorProps & { focused: { current: boolean } }) {
  return <Editor {...props} autoFocus={props.autoFocus || focused.current} />;
}
