import { ActionIcon, Button, Menu, Modal, SegmentedControl, Skeleton } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import {
  IconBinaryTree,
  IconCopy,
  IconDotsVertical,
  IconHistory,
  IconIndentIncrease,
  IconPlayerPlay,
  IconSearch,
  IconTrash,
} from "@tabler/icons-react";
import { lazy, Suspense, useEffect, useState } from "react";
import { requestPrometheus } from "../../api/client";
import { Failure } from "../../components/Loaded";
import { Empty, Notice } from "../../components/Notice";
import { useSettings } from "../../lib/settings";
import { Answered, Figures, Notices } from "./Answer";
import { useAsk } from "./ask";
import { ExpressionInput } from "./ExpressionInput";
import { queryHistory, remember } from "./history";
import { type PanelState, stepOf, type Tab } from "./model";
import css from "./query.module.css";
import { MomentControls, TableView } from "./TableView";

const GraphView = lazy(() => import("./GraphView"));
const ExplainView = lazy(() => import("./ExplainView"));
const Explorer = lazy(() => import("./Explorer"));

interface Props {
  state: PanelState;
  number: number;
  /** Changes when everything is asked again. */
  tick: number;
  autoFocus?: boolean;
  onChange: (part: Partial<PanelState>) => void;
  onDuplicate: () => void;
  onRemove?: () => void;
}

export function Panel({ state, number, tick, autoFocus, onChange, onDuplicate, onRemove }: Props) {
  const { settings } = useSettings();
  const [draft, setDraft] = useState(state.expr);
  const [run, setRun] = useState(0);
  const [problem, setProblem] = useState<Error>();
  const [explorer, { open: openExplorer, close: closeExplorer }] = useDisclosure(false);
  /** A part of the expression that was chosen in the tree. */
  const [part, setPart] = useState<string>();
  useEffect(() => {
    setDraft(state.expr);
    setPart(undefined);
    setProblem(undefined);
  }, [state.expr]);

  const execute = (expr: string) => {
    setProblem(undefined);
    if (settings.history) remember(expr);
    setPart(undefined);
    if (expr !== state.expr) onChange({ expr });
    else setRun((n) => n + 1);
  };
  const format = async () => {
    try {
      setDraft((await requestPrometheus<string>("format_query", { params: { query: draft } })).data);
      setProblem(undefined);
    } catch (err) {
      setProblem(err as Error);
    }
  };

  const expr = part ?? state.expr;
  const step = stepOf(state);
  const graph = state.tab === "graph";
  const query = useAsk({
    path: graph ? "query_range" : "query",
    expr,
    end: graph ? state.end : state.moment,
    range: graph ? state.range : 0,
    step: graph ? step : 1,
    run: run + tick,
    enabled: state.tab !== "explain",
  });
  const past = settings.history ? queryHistory().filter((q) => q !== draft) : [];

  return (
    <section className={css.panel} aria-label={`Panel ${number}`}>
      <div className={css.input}>
        <div className={css.field}>
          <ExpressionInput
            value={draft}
            onChange={setDraft}
            onRun={execute}
            label={`Expression of panel ${number}`}
            autoFocus={autoFocus}
          />
          <Menu position="bottom-end" width={240}>
            <Menu.Target>
              <ActionIcon variant="subtle" color="gray" size={32} mt={1} aria-label={`More for panel ${number}`}>
                <IconDotsVertical size={16} />
              </ActionIcon>
            </Menu.Target>
            <Menu.Dropdown>
              <Menu.Item leftSection={<IconSearch size={15} />} onClick={openExplorer}>
                Explore metrics
              </Menu.Item>
              <Menu.Item leftSection={<IconIndentIncrease size={15} />} onClick={format} disabled={draft.trim() === ""}>
                Format the expression
              </Menu.Item>
              <Menu.Item leftSection={<IconBinaryTree size={15} />} onClick={() => onChange({ showTree: !state.showTree })}>
                {state.showTree ? "Hide the tree" : "Show the tree"}
              </Menu.Item>
              <Menu.Item leftSection={<IconCopy size={15} />} onClick={onDuplicate}>
                Duplicate the panel
              </Menu.Item>
              <Menu.Item leftSection={<IconTrash size={15} />} onClick={onRemove} disabled={!onRemove}>
                Remove the panel
              </Menu.Item>
              {past.length > 0 && (
                <>
                  <Menu.Divider />
                  <Menu.Label>Asked before</Menu.Label>
                  {past.slice(0, 8).map((q) => (
                    <Menu.Item key={q} leftSection={<IconHistory size={15} />} onClick={() => execute(q)} title={q}>
                      <code>{q.length > 60 ? `${q.slice(0, 58)}…` : q}</code>
                    </Menu.Item>
                  ))}
                </>
              )}
            </Menu.Dropdown>
          </Menu>
        </div>
        <Button
          h={36}
          px="sm"
          onClick={() => execute(draft)}
          leftSection={<IconPlayerPlay size={15} aria-hidden />}
          loading={query.isFetching && query.isPlaceholderData}
        >
          Run
        </Button>
      </div>
      {problem && (
        <div className={css.notices} style={{ paddingTop: 0, paddingBottom: 8 }}>
          <Failure error={problem} />
        </div>
      )}
      {state.showTree && state.expr !== "" && state.tab !== "explain" && (
        <div className={css.body} style={{ paddingTop: 0 }}>
          <Suspense fallback={<Skeleton height={60} />}>
            <ExplainView
              expr={state.expr}
              moment={state.moment}
              run={run + tick}
              treeOnly
              chosen={part}
              onChoose={(e) => setPart(e === state.expr ? undefined : e)}
            />
          </Suspense>
        </div>
      )}
      <div className={css.bar}>
        <SegmentedControl
          size="xs"
          my={6}
          value={state.tab}
          onChange={(tab) => onChange({ tab: tab as Tab })}
          data={[
            { value: "table", label: "Table" },
            { value: "graph", label: "Graph" },
            { value: "explain", label: "Explain" },
          ]}
          aria-label="How the result is shown"
        />
        {state.tab !== "explain" && state.expr !== "" && <Figures query={query} />}
      </div>
      {part && state.tab !== "explain" && (
        <div className={css.notices}>
          <Notice kind="info">
            This is a part of the expression: <code>{part}</code>
          </Notice>
        </div>
      )}
      {state.tab !== "explain" && <Notices query={query} />}
      <div className={css.body}>
        {state.tab === "explain" ? (
          <Suspense fallback={<Skeleton height={160} />}>
            {state.expr === "" ? (
              <Empty>Enter an expression to have it explained.</Empty>
            ) : (
              <ExplainView expr={state.expr} moment={state.moment} run={run + tick} />
            )}
          </Suspense>
        ) : graph ? (
          <Suspense fallback={<Skeleton height={320} />}>
            <GraphView state={state} step={step} expr={expr} query={query} onChange={onChange} />
          </Suspense>
        ) : (
          <>
            <MomentControls value={state.moment} onChange={(moment) => onChange({ moment })} range={state.range} />
            {state.expr === "" ? (
              <Empty>Enter an expression and press Enter. “…” has all metrics to look through.</Empty>
            ) : (
              <Answered query={query}>{(a) => <TableView data={a.data} />}</Answered>
            )}
          </>
        )}
      </div>
      <Modal opened={explorer} onClose={closeExplorer} title="Explore metrics" size="lg" closeButtonProps={{ "aria-label": "Close" }}>
        <Suspense fallback={<Skeleton height={300} />}>
          <Explorer
            onInsert={(text) => {
              setDraft(draft.trim() === "" ? text : `${draft} ${text}`);
              closeExplorer();
            }}
            onRun={(text) => {
              closeExplorer();
              setDraft(text);
              execute(text);
            }}
          />
        </Suspense>
      </Modal>
    </section>
  );
}
