import { ActionIcon, AppShell, Burger, Kbd, Menu, Modal, Skeleton, Stack, Switch, Tooltip, useMantineColorScheme } from "@mantine/core";
import { useDisclosure, useHotkeys } from "@mantine/hooks";
import { IconClock, IconDeviceDesktop, IconKeyboard, IconMoon, IconRefresh, IconSearch, IconSettings, IconSun } from "@tabler/icons-react";
import { useQueryClient } from "@tanstack/react-query";
import { lazy, Suspense, useEffect, useMemo, useState } from "react";
import { Link, Redirect, Route, Switch as Routes, useLocation } from "wouter";
import { useSettings } from "../lib/settings";
import { zoneName } from "../lib/time";
import NotFoundPage from "../pages/notfound/NotFoundPage";
import { Bell } from "./Bell";
import { useCluster } from "./cluster";
import type { Command } from "./commands";
import { ErrorBoundary } from "./ErrorBoundary";
import icon from "./icon.svg";
import { pages } from "./pages";
import { Startup } from "./Startup";
import css from "./shell.module.css";
import { focusSearch, useShortcuts } from "./shortcuts";

const Palette = lazy(() => import("./Palette"));

const schemes = [
  { value: "auto", label: "As the system", icon: IconDeviceDesktop },
  { value: "light", label: "Light", icon: IconSun },
  { value: "dark", label: "Dark", icon: IconMoon },
] as const;

export function Shell() {
  const [path, navigate] = useLocation();
  const [nav, { toggle: toggleNav, close: closeNav }] = useDisclosure(false);
  const [sheet, { open: openSheet, close: closeSheet }] = useDisclosure(false);
  const [paletteOpened, setPaletteOpened] = useState(0);
  const { settings, set } = useSettings();
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  const { cluster, self } = useCluster();
  const queries = useQueryClient();

  // biome-ignore lint/correctness/useExhaustiveDependencies: after every navigation
  useEffect(() => {
    closeNav();
    window.scrollTo(0, 0);
  }, [path]);

  const openPalette = () => setPaletteOpened((n) => n + 1);
  const toggleUTC = () => set({ utc: !settings.utc });
  const refresh = () => void queries.invalidateQueries();
  useHotkeys([["mod+K", openPalette]], []);

  const shortcuts = [
    ...pages.filter((p) => p.key).map((p) => ({ key: p.key!, what: p.title, run: () => navigate(p.path) })),
    { key: "/", what: "Search on this page", run: focusSearch },
    { key: ".", what: "Refresh", run: refresh },
    { key: "u", what: "Local time or UTC", run: toggleUTC },
    {
      key: "l",
      what: "Light or dark",
      run: () => setColorScheme(document.documentElement.dataset.mantineColorScheme === "dark" ? "light" : "dark"),
    },
    { key: "?", what: "These shortcuts", run: openSheet },
  ];
  useShortcuts(shortcuts, settings.shortcuts);

  // biome-ignore lint/correctness/useExhaustiveDependencies: what they do does not depend on more
  const commands = useMemo<Command[]>(
    () => [
      ...pages.map((p) => ({ id: p.path, label: p.title, group: "Go to", words: p.words, icon: p.icon, run: () => navigate(p.path) })),
      { id: "refresh", label: "Refresh everything on this page", group: "Do", icon: IconRefresh, run: refresh },
      {
        id: "utc",
        label: settings.utc ? "Show times in the local zone" : "Show times in UTC",
        group: "Do",
        words: "timezone",
        icon: IconClock,
        run: toggleUTC,
      },
      ...schemes.map((s) => ({
        id: s.value,
        label: `Colours: ${s.label.toLowerCase()}`,
        group: "Do",
        words: "theme dark light",
        icon: s.icon,
        run: () => setColorScheme(s.value),
      })),
      { id: "shortcuts", label: "Keyboard shortcuts", group: "Do", words: "help keys", icon: IconKeyboard, run: openSheet },
    ],
    [navigate, settings.utc],
  );

  const groups = [...new Set(pages.map((p) => p.group))];
  const where = [cluster?.name, self?.name, self?.zone].filter(Boolean).join(" / ");
  return (
    <AppShell header={{ height: 48 }} navbar={{ width: 208, breakpoint: "sm", collapsed: { mobile: !nav } }} padding={0}>
      <button type="button" className="skip" onClick={() => document.querySelector<HTMLElement>("main h1")?.focus()}>
        Skip to the page
      </button>
      <AppShell.Header>
        <div className={css.header}>
          <Burger
            opened={nav}
            onClick={toggleNav}
            hiddenFrom="sm"
            size="sm"
            aria-label={nav ? "Close the menu" : "Open the menu"}
            aria-expanded={nav}
          />
          <Link href="/" className={css.brand} aria-label="Tocsin, home">
            <img src={icon} alt="" />
            Tocsin
          </Link>
          {where && (
            <Tooltip label="Cluster, replica and zone of what is shown here">
              <span className={css.where}>{where}</span>
            </Tooltip>
          )}
          <span className={css.spring} />
          <button type="button" className={css.search} onClick={openPalette} aria-keyshortcuts="Control+K Meta+K">
            <IconSearch size={15} aria-hidden />
            <span className={css.searchText}>Go to</span>
            <Kbd size="xs" visibleFrom="sm">
              Ctrl K
            </Kbd>
          </button>
          <Tooltip
            label={
              settings.utc
                ? "Times are in UTC. Show them in the local zone"
                : `Times are in the local zone (${zoneName(false)}). Show them in UTC`
            }
          >
            <ActionIcon
              variant="default"
              size={30}
              w="auto"
              px={8}
              style={{ flex: "none" }}
              onClick={toggleUTC}
              aria-label={settings.utc ? "Times are in UTC; show local time" : "Times are local; show UTC"}
            >
              <span style={{ fontSize: 12 }}>{settings.utc ? "UTC" : "Local"}</span>
            </ActionIcon>
          </Tooltip>
          <Bell />
          <Menu position="bottom-end" width={250}>
            <Menu.Target>
              <ActionIcon variant="default" size={30} aria-label="Settings">
                <IconSettings size={17} stroke={1.6} />
              </ActionIcon>
            </Menu.Target>
            <Menu.Dropdown>
              <Menu.Label>Colours</Menu.Label>
              <Menu.RadioGroup value={colorScheme} onChange={(v) => setColorScheme(v as typeof colorScheme)}>
                {schemes.map((s) => (
                  <Menu.RadioItem key={s.value} value={s.value} rightSection={<s.icon size={15} aria-hidden />}>
                    {s.label}
                  </Menu.RadioItem>
                ))}
              </Menu.RadioGroup>
              <Menu.Divider />
              <Menu.Item leftSection={<IconKeyboard size={15} />} onClick={openSheet}>
                Keyboard shortcuts
              </Menu.Item>
            </Menu.Dropdown>
          </Menu>
        </div>
      </AppShell.Header>
      <AppShell.Navbar className={css.navbar} aria-label="Pages" style={{ overflowY: "auto" }}>
        {groups.map((g) => (
          <div key={g} className={css.group}>
            {g && <div className={css.groupName}>{g}</div>}
            {pages
              .filter((p) => p.group === g)
              .map((p) => (
                <Link key={p.path} href={p.path} className={css.link} aria-current={path === p.path ? "page" : undefined}>
                  <p.icon size={17} stroke={1.6} aria-hidden />
                  {p.title}
                </Link>
              ))}
          </div>
        ))}
      </AppShell.Navbar>
      <AppShell.Main className={css.main} id="main">
        <Startup>
          <ErrorBoundary key={path}>
            <Suspense fallback={<PageSkeleton />}>
              <Routes>
                {pages.map((p) => (
                  <Route key={p.path} path={p.path} component={p.component} />
                ))}
                {/* The server leads there; this is for links that stay inside. */}
                <Route path="/graph">
                  <Redirect to={`/query${location.search}`} replace />
                </Route>
                <Route component={NotFoundPage} />
              </Routes>
            </Suspense>
          </ErrorBoundary>
        </Startup>
      </AppShell.Main>
      {paletteOpened > 0 && (
        <Suspense>
          <Palette commands={commands} opened={paletteOpened} />
        </Suspense>
      )}
      <Modal opened={sheet} onClose={closeSheet} title="Keyboard shortcuts" size="sm" closeButtonProps={{ "aria-label": "Close" }}>
        <Stack>
          <Switch
            label="Single keys are shortcuts"
            checked={settings.shortcuts}
            onChange={(e) => set({ shortcuts: e.currentTarget.checked })}
          />
          <table className={css.sheet}>
            <tbody>
              <tr>
                <td>Go to a page, or do something</td>
                <td>
                  <Kbd>Ctrl</Kbd> <Kbd>K</Kbd>
                </td>
              </tr>
              {shortcuts.map((s) => (
                <tr key={s.key}>
                  <td>{s.what}</td>
                  <td>
                    <Kbd>{s.key}</Kbd>
                  </td>
                </tr>
              ))}
              <tr>
                <td>In the editor: run, new line, leave</td>
                <td>
                  <Kbd>Enter</Kbd> <Kbd>Shift Enter</Kbd> <Kbd>Esc</Kbd>
                </td>
              </tr>
            </tbody>
          </table>
        </Stack>
      </Modal>
    </AppShell>
  );
}

/** What is shown while the script of a page is on its way. */
function PageSkeleton() {
  return (
    <div className={css.page} aria-hidden>
      <Skeleton height={28} width={180} mb="md" />
      <Skeleton height={36} mb="sm" />
      <Skeleton height={220} />
    </div>
  );
}
