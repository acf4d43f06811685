// State that is in the address, so that it can be sent to somebody and the back button works.

import { useCallback, useMemo } from "react";
import { useSearchParams } from "wouter";

/** One parameter. What equals the default is left out. Typing replaces the entry of the history, choosing adds one. */
export function useParam(name: string, fallback = ""): [string, (value: string, how?: "push" | "replace") => void] {
  const [params, setParams] = useSearchParams();
  const set = useCallback(
    (value: string, how: "push" | "replace" = "replace") =>
      setParams(
        (old) => {
          const next = new URLSearchParams(old);
          if (value === fallback) next.delete(name);
          else next.set(name, value);
          return next;
        },
        { replace: how === "replace" },
      ),
    [setParams, name, fallback],
  );
  return [params.get(name) ?? fallback, set];
}

/** A set of words in one parameter, separated by commas. */
export function useParamList(name: string): [string[], (values: string[]) => void] {
  const [value, set] = useParam(name);
  const list = useMemo(() => (value === "" ? [] : value.split(",")), [value]);
  return [list, useCallback((values: string[]) => set(values.join(",")), [set])];
}
