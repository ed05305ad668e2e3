"""What a person looks at: status, comparison, similar images, and the report.

    contact_sheet    Write contact sheets: images like one, or groups of near-duplicates, as one page.
    diff             Compare two outputs of the same images: settings, versions, outcomes and features.
    duplicate_groups Group near-duplicates, and write their table.
    duplicates       Find the near-duplicates of a dataset: the exact cosine of every pair of images, in bounded memory.
    html             Render pages from templates: what they show is escaped, and they load nothing.
    join             Join the rows of two outputs by key, in flat memory.
    labels_report    The report of a head of images with several labels each, as HTML.
    layer_diff       Measure how far the features of one layer are apart in two outputs.
    overview         Show a features dataset before any head: counts, sizes, gallery, map, near copies, outliers.
    plots            Draw confusion matrix, calibration and coverage as PNG or SVG, for light and dark pages.
    recompute        Extract random images again and compare them with the data files.
    report           Write `report.html`: how good a head is, where it fails, and how it was made.
    report_sections  The sections of a report as HTML.
    similar          Find the images most similar to some: the exact cosine of every row, in flat memory.
    status           Tell how far an output is, from one listing of its store.

Imports heads and the folders below it; no Ray.
"""
