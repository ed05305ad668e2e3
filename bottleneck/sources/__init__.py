"""The images of a source, whatever its form, and their labels.

    containers       Find the objects of a source that hold many images: tars and Parquet files.
    files            Images as objects of their own, labelled by their folders.
    image            An image as a plan records it, and which names are images.
    image_format     Detect the format of an image from its first bytes, and choose its only reader.
    labels           Labels: one notion for folders, tables, lists and tars.
    list_names       Match a relative name of a list with an object, by its possible spellings.
    list_order       Sort the lines of a long list by key, in runs on disk.
    list_report      Report how the names of a list were found, and which are missing.
    list_rows        Read the rows of a list: CSV with any usual separator, JSON Lines, gzip of either, or Parquet.
    open             Detect the kind of a source and open it: list its images, read them.
    parquet          Images in a column of Parquet files, as Hugging Face datasets have them.
    parquet_columns  Find the columns of a Parquet file that hold images and labels.
    places           The places a source may be read in: its own and its roots.
    reading          The options of how a source is read and which images are accepted.
    sampling         Draw a uniform sample of images by a hash of their keys, in one pass and bounded memory.
    selection        Which images of a source are planned: patterns for their keys, the first ones, or a sample.
    tar_index        Read the headers of a tar, or say why it cannot be indexed.
    uri_list         Images named by a list, by URI or relative name.
    webdataset       Images in tars, as WebDataset and img2dataset write them.

Imports storage; knows nothing of networks.
"""
